"""How the reverse process is differentiated: a gradient route makes its steps and defines their gradient.

`Direct` and `StoredState` are exact, and so is `Deviated`, of an attack's loss and a second one together.
`StraightThrough`, `Adjoint`, `Relaxed` and `Grafted` are not. Reports name each by its `mode`.
"""

from depura.gradients.adjoint import Adjoint as Adjoint
from depura.gradients.deviated import Deviated as Deviated
from depura.gradients.grafted import Grafted as Grafted
from depura.gradients.relaxed import Relaxed as Relaxed
from depura.gradients.routes import ChainState as ChainState
from depura.gradients.routes import Direct as Direct
from depura.gradients.routes import FromEnd as FromEnd
from depura.gradients.routes import GradientRoute as GradientRoute
from depura.gradients.routes import StraightThrough as StraightThrough
from depura.gradients.routes import Transition as Transition
from depura.gradients.routes import fold as fold
from depura.gradients.stored import StoredState as StoredState
from depura.gradients.stored import graph_bytes as graph_bytes
from depura.gradients.stored import recomputing as recomputing
