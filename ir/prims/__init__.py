"""All primitives, by family. Importing this package fills the registry."""

from weft.ir.prims.attention import *  # noqa: F403
from weft.ir.prims.bits import *  # noqa: F403
from weft.ir.prims.complex_ import *  # noqa: F403
from weft.ir.prims.contract import *  # noqa: F403
from weft.ir.prims.control import *  # noqa: F403
from weft.ir.prims.convert import *  # noqa: F403
from weft.ir.prims.device import *  # noqa: F403
from weft.ir.prims.elementwise import *  # noqa: F403
from weft.ir.prims.gather import *  # noqa: F403
from weft.ir.prims.host import *  # noqa: F403
from weft.ir.prims.kernel import *  # noqa: F403
from weft.ir.prims.move import *  # noqa: F403
from weft.ir.prims.random import *  # noqa: F403
from weft.ir.prims.reduce import *  # noqa: F403
from weft.ir.prims.scan import *  # noqa: F403
from weft.ir.prims.sort import *  # noqa: F403
from weft.ir.prims.source import *  # noqa: F403
from weft.ir.prims.transcendental import *  # noqa: F403
from weft.ir.prims.window import *  # noqa: F403
