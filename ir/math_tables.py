"""Functions of f32 from tables of sixteen entries that stay in vector registers.

An entry is found by the low bits of an integer (:meth:`weft.ir.scalar.ScalarBuilder.table`: one instruction
where a vector holds sixteen floats, three where it holds eight). Piecewise polynomials of small degree then
replace divisions and long series. Coefficients: Lawson's weighted least squares on Chebyshev points toward
the smallest error in ULP, rounded to f32 one after the other from the lowest degree on, the rest fitted
again.
"""

from __future__ import annotations

from collections.abc import Sequence

from weft.ir.scalarexpr import Num, fast_two_sum, horner, two_product

Row = tuple[float, ...]
_FAMILIES: dict[Row, tuple[Row, ...]] = {}


def family(*rows: Row) -> tuple[Row, ...]:
    """Tables that are looked up at the same index."""
    _FAMILIES.update(dict.fromkeys(rows, rows))
    return rows


def family_of(row: Row) -> tuple[Row, ...]:
    """The tables that are looked up where this one is."""
    return _FAMILIES.get(row, (row,))


# erf(k/4 + r) for |r| <= 1/8, k = 0 .. 15: a row per power of r. Row 1 lacks a one at k = 0. The last column
# rises a little faster than erf, so as to reach 1 at the end, where erf is 1 but for 0.7 of a unit of it.
ERF = family(
    (0.0, 0.2763264, 0.5204999, 0.71115565, 0.8427008, 0.92290014, 0.96610516, 0.9866717, 0.9953223,
     0.9985373, 0.999593, 0.9998994, 0.9999779, 0.9999957, 0.9999993, 0.9999999),
    (0.12837917, 1.0600142, 0.8787827, 0.64293104, 0.4151075, 0.23652112, 0.11893029, 0.052774996,
     0.020666985, 0.007142319, 0.0021782843, 5.862775e-04, 1.3925321e-04, 2.9189097e-05, 5.3994513e-06,
     9.57439e-07),
    (3.371273e-07, -0.26499894, -0.4393886, -0.48220456, -0.41510123, -0.29565674, -0.17840175,
     -0.09236103, -0.041339673, -0.016074672, -0.005438117, -0.0016144613, -4.118365e-04, -9.7714714e-05,
     -2.6017318e-05, 5.3211625e-07),
    (-0.37614495, -0.30919468, -0.14649607, 0.02679061, 0.13836889, 0.16753484, 0.13875292, 0.090158135,
     0.048223503, 0.021724671, 0.008349999, 0.0027602515, 7.8901736e-04, 1.9577309e-04, 4.228298e-05,
     7.966105e-06),
    (3.3664436e-04, 0.12608841, 0.182141, 0.1506636, 0.06885764, -0.005538164, -0.04395871, -0.04770966,
     -0.03414505, -0.018902712, -0.0090570245, -0.0031727445, -0.0013597811, -1.449742e-04, 2.955073e-04,
     -2.1063963e-04),
    (0.11074183, 0.08091006, 0.009135035, -0.052970357, -0.06889533, -0.04707367, -0.014991032,
     0.006479222, 0.013005158, 0.010640397, 0.0061309463, 0.0027734127, 0.0010272227, 3.1846733e-04,
     8.371637e-05, 1.8819332e-05),
)  # fmt: skip

# tanh(k h + r) for |r| <= h/2, k = 0 .. 15
TANH_STEP = 149 / 256
TANH_END = 9.015663146972656
TANH = family(
    (0.0, 0.52414024, 0.82235944, 0.9409293, 0.9811748, 0.9940842, 0.9981492, 0.9994218, 0.99981946,
     0.9999436, 0.9999824, 0.9999945, 0.9999983, 0.99999946, 0.9999998, 0.99999994),
    (1.0, 0.72527725, 0.323725, 0.114652015, 0.03729597, 0.011796614, 0.0036981143, 0.0011560787,
     3.6108895e-04, 1.1275147e-04, 3.520409e-05, 1.0991386e-05, 3.4316913e-06, 1.0714275e-06, 3.345161e-07,
     1.3454346e-07),
    (-9.2257935e-08, -0.38015082, -0.26622435, -0.10787565, -0.036594402, -0.011725406, -0.0036899436,
     -0.0011536966, -3.627536e-04, -1.11926325e-04, -3.6982256e-05, -1.2132531e-05, -2.2331878e-06,
     -1.0026681e-06, 7.570747e-07, 3.3606868e-06),
    (-0.33332717, -0.042531013, 0.111019604, 0.06328934, 0.023472976, 0.0077252607, 0.002451726,
     7.6938636e-04, 2.4059591e-04, 7.515517e-05, 2.3468168e-05, 7.3274905e-06, 2.2877755e-06, 7.142845e-07,
     2.2301103e-07, 3.1219022e-07),
    (-1.3465965e-04, 0.14911933, -0.002356585, -0.023696106, -0.010821135, -0.0038041223, -0.0012480436,
     -4.2425183e-04, -7.935365e-05, -5.6903256e-05, 3.0274221e-05, 2.3286679e-05, -2.9446956e-05,
     -1.9808977e-06, -2.5889974e-05, -1.10559944e-04),
    (0.13465509, -0.047225844, -0.027739862, 0.003655298, 0.0036343825, 0.001435153, 4.7959745e-04,
     1.5272872e-04, 4.8006797e-05, 1.5015529e-05, 4.6922173e-06, 1.4649372e-06, 4.576699e-07,
     1.4283812e-07, 4.4592294e-08, -1.5278223e-05),
    (-0.0062285466, -0.034075096, 0.015888045, 0.002876038, -8.365135e-04, -2.056392e-04, 5.50016e-05,
     2.2209753e-04, -2.917566e-04, 1.2541265e-04, -2.8501247e-04, -1.8233394e-04, 1.908153e-04,
     1.0907965e-05, 1.739198e-04, 8.827236e-04),
    (-0.041733667, 0.025746927, -0.003087393, -0.0020265477, -2.704165e-05, 9.724551e-05, 4.0858282e-05,
     1.471952e-05, 4.6108375e-06, 1.4683529e-06, 4.5200218e-07, 1.4324826e-07, 4.3106574e-08, 1.380098e-08,
     4.3354267e-09, 1.835085e-04),
)  # fmt: skip

# 2^(j/16)
EXP2_TABLE = (
    1.0, 1.0442737, 1.0905077, 1.1387886, 1.1892071, 1.2418578, 1.2968396, 1.3542556, 1.4142135,
    1.4768262, 1.5422108, 1.6104903, 1.6817929, 1.7562522, 1.8340081, 1.9152066,
)  # fmt: skip
EXP2_TABLE_LOW = (  # what it lacks
    0.0, 4.83347e-08, -1.307754e-08, 5.3862223e-08, 3.7976353e-08, 4.496838e-08, -4.0189995e-08,
    -1.0123349e-08, 2.4203235e-08, -4.500899e-08, 8.070905e-09, 9.836217e-09, -2.4755327e-08, -9.23577e-09,
    -1.1239278e-08, 9.845328e-09,
)  # fmt: skip

# (exp(r) - 1 - r) / r^2 on |r| <= ln2/32; (2^r - 1) / r on |r| <= 1/32
EXP_POLY = (0.5000162, 0.16667025)
EXP2_POLY = (0.6931472, 0.24023429, 0.055502906)
LOG2E = 1.4426950408889634
LN2 = (0.6931472, -1.9046542e-09)  # as a sum
SIXTEENTHS = 1.5 * 2.0**19  # adding it rounds to sixteenths, and leaves their number in the low bits

# c = 1/(1 + (j + 1/2)/16) roughly, but 1 for j = 0 and 1/2 for j = 15; -log(c) and -log2(c) as sums, whose
# first parts are multiples of 2^-15: the sum with an exponent's is exact
LOG_TABLE = family(
    (1.0, 0.9140625, 0.86328125, 0.8203125, 0.78125, 0.74609375, 0.7109375, 0.6796875, 0.65234375,
     0.62890625, 0.60546875, 0.58203125, 0.5625, 0.54296875, 0.5234375, 0.5),
    (0.0, 0.08984375, 0.14700317, 0.19805908, 0.24685669, 0.2929077, 0.341156, 0.3861084, 0.42718506,
     0.46377563, 0.5017395, 0.54122925, 0.5753784, 0.6107178, 0.64733887, 0.69314575),
    (0.0, 1.2579122e-05, 1.1569134e-05, 1.0831731e-05, 3.3884785e-06, -3.6984109e-06, 1.4751543e-05,
     1.3746828e-05, -1.426531e-06, -2.5552706e-06, 1.2825607e-05, 1.8904873e-06, -1.4273065e-05,
     -1.4262088e-05, -1.2226589e-06, 1.4286068e-06),
)  # fmt: skip

LOG2_TABLE = family(
    (0.0, 0.12963867, 0.21209717, 0.2857666, 0.35614014, 0.4225769, 0.49221802, 0.5570679, 0.6163025,
     0.6690979, 0.72387695, 0.78082275, 0.8300781, 0.881073, 0.9338989, 1.0),
    (0.0, -3.3914584e-06, 2.7263982e-07, -1.2119229e-05, 3.6735066e-06, -5.7323327e-06, -1.2657777e-05,
     -1.1366942e-05, -6.7827086e-06, -1.4778505e-05, -1.3583992e-06, 8.725631e-06, -3.1264424e-06,
     -1.4070771e-05, 1.1883761e-05, 0.0),
)  # fmt: skip

LN2_DOWN = (0.69314575, 1.4286068e-06)  # ln 2 likewise, both of one sign: infinite multiples keep theirs
# (log(1+f) - f) / f^2 and (log2(1+f) - f log2(e)) / f^2 on -1/32 <= f < 1/16
LOG_POLY = (-0.5, 0.33334434, -0.25007552, 0.18869194)
LOG2_POLY = (-0.7213475, 0.48091406, -0.36078992, 0.27234885)
LOG2E_PARTS = (1.4426950216293335, 1.925963033500011e-08)

# The same with c of six bits, so that m c - 1 is exact for all m of 24 bits: it is less than 1/16. -log2(c)
# as a sum, of which an exponent plus the first part is exact.
LOG2_DOUBLE = family(
    (1.0, 0.90625, 0.875, 0.8125, 0.78125, 0.75, 0.71875, 0.6875, 0.65625, 0.625, 0.59375, 0.59375,
     0.5625, 0.53125, 0.53125, 0.5),
    (0.0, 0.14202880859375, 0.192657470703125, 0.299560546875, 0.35614013671875, 0.4150390625,
     0.4764404296875, 0.540557861328125, 0.607696533203125, 0.678070068359375, 0.7520751953125,
     0.7520751953125, 0.830078125, 0.91253662109375, 0.91253662109375, 1.0),
    (0.0, -9.803722e-06, -1.2392761e-05, -2.650161e-07, 3.6735065e-06, -1.5632212e-06, -2.3857444e-06,
     1.0520034e-05, -1.3955982e-05, 1.8367533e-06, -2.708756e-06, -2.708756e-06, -3.1264424e-06,
     5.3765592e-07, 5.3765592e-07, 0.0),
)  # fmt: skip
# (log(1+f) - f + f^2/2) / f^3 on -0.0372 <= f < 1/16
LOG_CUBIC = (0.3333333, -0.24999991, 0.20002963, -0.16692539, 0.13288215)


def lookup(index: Num, values: Sequence[float], like: Num) -> Num:
    """``values`` at the low bits of an integer, in the dtype of ``like``."""
    return Num(like.b, like.b.table(tuple(values), index.h, like.dtype))


def piecewise(r: Num, index: Num, rows: Sequence[Sequence[float]]) -> Num:
    """The polynomial of the column ``index`` at r."""
    out = lookup(index, rows[-1], r)
    for row in reversed(rows[:-1]):
        out = out.fma(r, lookup(index, row, r))
    return out


def erf(x: Num) -> Num:
    """Sixteen polynomials of degree five. Next to 0 the leading coefficient is added as x + x (c - 1)."""
    a = abs(x).at_most(3.8749998)
    shifted = a + 1.5 * 2.0**21  # rounds to quarters, and leaves their number in the low bits
    index, r = shifted.bits(), a - (shifted - 1.5 * 2.0**21)
    slope = piecewise(r, index, ERF[1:])
    start = lookup(index, ERF[0], r).at_least(r)  # r next to 0, where the table has 0; elsewhere it is more
    return slope.fma(r, start).copysign(x)


def tanh(x: Num) -> Num:
    """Sixteen polynomials of degree seven."""
    a = abs(x).at_most(TANH_END)
    shifted = a.fma(1.0 / TANH_STEP, 1.5 * 2.0**23)
    r = (shifted - 1.5 * 2.0**23).fma(-TANH_STEP, a)  # exact
    return piecewise(r, shifted.bits(), TANH).copysign(x)


def exp_parts(x: Num) -> tuple[Num, Num]:
    """p and n with exp(x) = p 2^floor(n), 1 <= p < 2 or nearly so, n a multiple of 1/16; after P. T. P. Tang
    (1989). x is bounded, or NaN.
    """
    shifted = x.fma(LOG2E, SIXTEENTHS)
    n = shifted - SIXTEENTHS
    high, low = LN2
    r = n.fma(-low, n.fma(-high, x))
    power = lookup(shifted.bits(), EXP2_TABLE, x)
    tail = (r * r).fma(r.fma(EXP_POLY[1], EXP_POLY[0]), r)
    return tail.fma(power, power), n


def exp2_parts(x: Num) -> tuple[Num, Num]:
    """The same for 2^x."""
    shifted = x + SIXTEENTHS
    n = shifted - SIXTEENTHS
    r = x - n
    power = lookup(shifted.bits(), EXP2_TABLE, x)
    return (r * horner(r, EXP2_POLY)).fma(power, power), n


def _log_parts(x: Num) -> tuple[Num, Num, Num]:
    """e, j and f with x = 2^e (1 + f) / c[j]; e is infinite for 0 and infinity, f NaN below 0."""
    e, m = (Num(x.b, h) for h in x.b.normalise(x.h))
    j = m.bits() >> 19
    return e, j, m.fma(lookup(j, LOG_TABLE[0], x), -1.0)


def _log_of(e: Num, j: Num, f: Num, more: Num | None = None) -> tuple[Num, Num]:
    """log(2^e (1 + f) / c[j]) and a little more, as the sum of an exact number and a small one."""
    high, low = LN2_DOWN
    head = e.fma(high, lookup(j, LOG_TABLE[1], f))
    tail = e.fma(low, lookup(j, LOG_TABLE[2], f))
    if more is not None:
        tail = tail + more
    return head, f + (f * f).fma(horner(f, LOG_POLY), tail)


def log_double(x: Num) -> tuple[Num, Num]:
    """log(x) as a sum, of which the first part is exact, and the second at most 1/16 or so."""
    return _log_of(*_log_parts(x))


def log(x: Num) -> Num:
    return _added(log_double(x))


def _added(parts: tuple[Num, Num]) -> Num:
    return parts[0] + parts[1]


def _log_scale(x: Num) -> tuple[Num, Num, Num]:
    """e, j and c[j] / 2^e of a positive normal x = 2^e m, by its bits."""
    bits = x.bits()
    j = bits >> 19
    e = ((bits >> 23) | 0x4B400000).as_float() - (1.5 * 2.0**23 + 127)
    four = lookup(j, LOG_TABLE[0], x).bits() + (0x3F800000 + (2 << 23)) - (bits & 0x7F800000)
    return e, j, four.as_float() * 0.25  # a subnormal number for the largest x


def log1p(x: Num) -> Num:
    """log(1 + x) for -1 < x < inf."""
    e, j, scale = _log_scale(x + 1.0)
    return _added(_log_of(e, j, x.fma(scale, scale - 1.0)))


def log1p_sum(x: Num, low: Num, doublings: Num) -> Num:
    """log(2^doublings (1 + x + low)) for an x of at least 0 and a small low."""
    e, j, scale = _log_scale(x + 1.0)
    return _added(_log_of(e + doublings, j, x.fma(scale, scale - 1.0), low * scale))


def log_sum(x: Num, low: Num, doublings: Num) -> Num:
    """log(2^doublings (x + low)) for a positive normal x and a small low."""
    e, j, scale = _log_scale(x)
    return _added(_log_of(e + doublings, j, x.fma(scale, -1.0), low * scale))


def log2(x: Num) -> Num:
    e, j, f = _log_parts(x)
    high, low = LOG2E_PARTS
    tail = f.fma(low, lookup(j, LOG2_TABLE[1], x))
    return (e + lookup(j, LOG2_TABLE[0], x)) + f.fma(high, (f * f).fma(horner(f, LOG2_POLY), tail))


def exp2_sum_parts(x: Num, low: Num) -> tuple[Num, Num]:
    """p and n of 2^(x + low), with the rounding of p as their only error of note."""
    shifted = (x + low) + SIXTEENTHS
    n, index = shifted - SIXTEENTHS, shifted.bits()
    r = (x - n) + low
    power = lookup(index, EXP2_TABLE, x)
    tail = power.fma(r * horner(r, EXP2_POLY), lookup(index, EXP2_TABLE_LOW, x))
    return power + tail, n


def exp_sum_parts(x: Num, low: Num) -> tuple[Num, Num, Num]:
    """p, what it lacks, and n of exp(x + low), low far below one."""
    shifted = x.fma(LOG2E, SIXTEENTHS)
    n, index = shifted - SIXTEENTHS, shifted.bits()
    r = n.fma(-LN2[1], n.fma(-LN2[0], x)) + low
    power = lookup(index, EXP2_TABLE, x)
    tail = power.fma((r * r).fma(horner(r, EXP_POLY), r), lookup(index, EXP2_TABLE_LOW, x))
    p, error = fast_two_sum(power, tail)
    return p, error, n


def log2_double(x: Num) -> tuple[Num, Num]:
    """log2(x) as the sum of two numbers, to 2^-33; at 0 and infinity the second is NaN."""
    e, m = (Num(x.b, h) for h in x.b.normalise(x.h))
    j = m.bits() >> 19
    f = m.fma(lookup(j, LOG2_DOUBLE[0], x), -1.0)
    # log(1 + f) = (f - f^2/2) + f^3 (1/3 - ...), the first part with its error
    half = f * -0.5
    head = half.fma(f, f)
    tail = (f * f * f).fma(horner(f, LOG_CUBIC), half.fma(f, f - head))
    # times log2(e)
    high, low = LOG2E_PARTS
    product, rest = two_product(head, head.const(high))
    rest = rest + tail.fma(high, head.fma(low, lookup(j, LOG2_DOUBLE[2], x)))
    total, error = fast_two_sum(e + lookup(j, LOG2_DOUBLE[1], x), product)
    return total, error + rest


def log_plus(x: Num, more: Num) -> Num:
    """log(x) + more, for a positive normal x and a small more."""
    e, j, scale = _log_scale(x)
    return _added(_log_of(e, j, x.fma(scale, -1.0), more))
