"""The statements that ``benchmarks.eager`` times, by group, and what they read.

``L`` is the library, ``F`` its ``nn.functional``. ``x``, ``y`` are matrices of the size measured, ``p``
positive, ``i`` integers, ``m`` a mask, ``w`` square on the right; names that end in ``g`` require grad.
"""

from __future__ import annotations

SHAPES = {
    "8": (2, 4), "1000": (25, 40), "64x64": (64, 64), "100000": (250, 400), "1000000": (1000, 1000),
    "10000000": (2500, 4000),
}  # fmt: skip


def shape_of(size: str) -> tuple[int, int]:
    return SHAPES[size]


SETUP = """
rows, columns = shape
x, y, p = L.randn(rows, columns), L.randn(rows, columns), L.rand(rows, columns) + 0.5
z, q, r = x.clone(), x.clone(), L.randn(columns)
col, one, scalar = L.randn(rows, 1), L.tensor([1.5]), L.tensor(2.5)
i, j = L.arange(rows * columns).reshape(rows, columns), L.arange(rows * columns).reshape(rows, columns) + 1
m, k = x > 0, y > 0
v, d = L.randn(rows * columns), x.double()
perm, pick = L.randperm(rows), L.zeros(rows, 1, dtype=L.int64)
xt, three, w = x.t(), x.reshape(1, rows, columns), L.randn(columns, columns) / columns**0.5
square = L.randn(min(columns, 512), min(columns, 512))
batch = L.randn(4, min(rows, 64), min(columns, 64))
batch_t = batch.transpose(1, 2).contiguous()
labels = L.randint(0, columns, (rows,))
xg, yg, wg = x.clone().requires_grad_(), y.clone().requires_grad_(), w.clone().requires_grad_()
gain, bias = L.ones(columns), L.zeros(columns)
image, taps = L.randn(1, 3, 8 + rows % 56, 8 + columns % 56), L.randn(4, 3, 3, 3)
narrow_x = L.randn(min(rows, 64), min(columns, 64))
wide = narrow_x.shape[1]
layer = L.nn.Linear(wide, wide)
mlp = L.nn.Sequential(L.nn.Linear(wide, 32), L.nn.ReLU(), L.nn.Linear(32, 10))
target = L.randint(0, 10, (narrow_x.shape[0],))
def loss_backward():
    F.cross_entropy(mlp(narrow_x), target).backward()
def chain_backward():
    ((xg * y + 1).tanh() * y).sum().backward()
def under_no_grad():
    with L.no_grad():
        return xg + yg
params = [L.randn(min(n, 64)).requires_grad_() for n in [columns] * 10]
for t in params:
    t.grad = L.ones_like(t)
sgd, adam = L.optim.SGD(params, lr=1e-6, momentum=0.9), L.optim.Adam(params, lr=1e-6)
"""

GROUPS = {
    "unary": [
        "x.exp()", "L.tanh(x)", "-x", "x.abs()", "p.sqrt()", "p.log()", "x.sigmoid()", "x.relu()",
        "x.square()", "x.sign()", "x.round()", "p.rsqrt()", "x.reciprocal()", "x.erf()", "~m", "x.isnan()",
        "x.isfinite()",
    ],
    "binary": [
        "x + y", "x * y", "x / y", "x - y", "L.maximum(x, y)", "p ** y", "L.add(x, y, alpha=2)", "i + j",
        "i * j", "i // j", "x % p", "L.atan2(x, y)", "m & k", "x + d", "x + i", "L.lerp(x, y, 0.3)",
        "L.addcmul(x, y, p)",
    ],
    "scalar": [
        "x + 1.0", "x * 2", "1.0 - x", "x / 3.0", "x ** 2", "x ** 0.5", "i + 1", "i * 2", "i // 2",
        "x + scalar",
    ],
    "broadcast": [
        "x + r", "x * col", "x + one", "col * r", "x - x.mean(1, keepdim=True)",
    ],
    "in place": [
        "z.add_(y)", "z.mul_(0.5)", "z.__iadd__(1e-6)", "z.zero_()", "z.fill_(0.5)", "z.copy_(y)",
        "z.clamp_(-1, 1)", "z.neg_()", "z[0] = 1.0", "z[:, 1] = col[:, 0]", "z.add_(y, alpha=0.1)",
    ],
    "comparison": [
        "x > y", "x == y", "x <= 0", "L.where(m, x, y)", "L.where(m, x, 0.0)", "x.clamp(-1, 1)",
        "x.clamp(min=0)", "L.equal(x, y)", "L.allclose(x, x)", "i == j", "x.masked_fill(m, 0.0)",
    ],
    "reduction": [
        "x.sum()", "x.sum(1)", "x.sum(0)", "x.sum(dim=1, keepdim=True)", "x.mean()", "x.mean(-1)",
        "x.max()", "x.max(1)", "x.min(dim=0)", "x.argmax()", "x.argmax(1)", "x.amax(1)", "x.std()",
        "x.var(1)", "x.prod(1)", "x.norm()", "m.any()", "m.all()", "m.sum()", "i.sum()", "x.cumsum(1)",
        "x.logsumexp(1)", "L.softmax(x, 1)", "F.log_softmax(x, -1)", "x.sort(1)", "x.argsort(1)",
        "x.topk(2, 1)",
    ],
    "join and split": [
        "L.cat([x, y])", "L.cat((x, y), 1)", "L.stack([x, y])", "L.stack([x, y], -1)", "x.split(2, 1)",
        "x.chunk(2)", "x.unbind()", "x.repeat(2, 1)", "L.hstack([x, y])", "x.tril()", "x.flip(0)",
        "x.roll(1, 0)",
    ],
    "indexing": [
        "x[0]", "x[1, 2]", "x[:, 1]", "x[1:]", "x[:, ::2]", "x[..., None]", "x[m]", "x[perm]", "x[[0, 1]]",
        "x.gather(1, pick)", "x.index_select(0, perm)", "x.masked_select(m)", "x.select(0, 1)",
        "x.narrow(0, 0, 1)", "m.nonzero()", "x.take(pick)",
    ],
    "view": [
        "x.reshape(-1)", "x.view(-1)", "x.t()", "x.T", "x.transpose(0, 1)", "x.permute(1, 0)",
        "x.unsqueeze(0)", "three.squeeze(0)", "x.flatten()", "x.expand(3, -1, -1)", "x.detach()",
        "x.view_as(y)", "x.movedim(0, 1)", "x.diagonal()",
    ],
    "copy": [
        "x.clone()", "x.contiguous()", "xt.contiguous()", "x.to(L.float64)", "x.to(L.float32)",
        "x.double()", "x.int()", "i.float()", "m.float()", "x.cpu()", "x.type_as(d)",
    ],
    "creation": [
        "L.zeros(rows, columns)", "L.ones(shape)", "L.empty(shape)", "L.full(shape, 2.0)", "L.arange(rows)",
        "L.arange(0, 1, 0.1)", "L.randn(rows, columns)", "L.rand(shape)", "L.randint(0, 10, shape)",
        "L.zeros_like(x)", "L.ones_like(x)", "L.randn_like(x)", "L.tensor(1.0)",
        "L.tensor([1.0, 2.0, 3.0])", "L.eye(8)", "L.linspace(0, 1, 10)", "x.new_zeros(3)",
        "L.randperm(rows)",
    ],
    "product": [
        "x @ w", "L.mm(x, w)", "square @ square", "L.bmm(batch, batch_t)", "L.matmul(batch, batch_t)",
        "x @ r", "v @ v", "v.dot(v)", "L.outer(r[:8], r[:8])", "L.addmm(x, x, w)",
        "L.einsum('ij,kj->ik', narrow_x, narrow_x)", "F.linear(x, w, r)",
    ],
    "value": [
        "scalar.item()", "x[0, 0].item()", "float(scalar)", "bool(scalar > 0)", "x.tolist()", "x.numpy()",
        "x.shape", "x.size(0)", "x.dtype", "x.device", "x.numel()", "x.dim()", "len(x)",
        "x.is_contiguous()", "x.stride()", "x.requires_grad", "x.data_ptr()",
    ],
    "functional": [
        "F.relu(x)", "F.gelu(x)", "F.silu(x)", "F.layer_norm(x, (columns,), gain, bias)",
        "F.cross_entropy(x, labels)", "F.mse_loss(x, y)", "F.embedding(labels, w)", "F.dropout(x, 0.5)",
        "F.conv2d(image, taps)", "F.max_pool2d(image, 2)", "F.leaky_relu(x)", "F.softplus(x)",
        "F.one_hot(labels)", "F.normalize(x)", "F.pad(x, (1, 1))", "F.l1_loss(x, y)",
    ],
    "recorded": [
        "xg + yg", "xg * 2.0", "xg.exp()", "xg @ wg", "xg.sum()", "xg.reshape(-1)", "xg[0]", "xg.mean(1)",
        "L.cat([xg, yg])", "F.relu(xg)", "F.softmax(xg, 1)", "xg.sum().backward()", "chain_backward()",
        "under_no_grad()", "xg.detach()",
    ],
    "training": [
        "layer(narrow_x)", "mlp(narrow_x)", "loss_backward()", "sgd.step()", "adam.step()",
        "sgd.zero_grad()",
    ],
}  # fmt: skip
