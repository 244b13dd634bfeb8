"""The toy model of the paper: its optima, exact and expanded in rho.

See `experiments.toy` for the model and the question.

"SAM" has several meanings here, all with the logistic loss L, its Hessian H,
its third derivatives T, its minimum w*, and the top eigenvector v of H with the
eigenvalue l:

- worst: min_w max_{|e| <= rho} L(w + e) over all weights. Two maxima, near
  +rho v and -rho v, tie at the optimum, which fixes w along v:
  w = w* - rho^2/2 H^-1 T[v, v] + rho^2/3 T[v, v, v] / l v + O(rho^4).
- penalty: min_w L + rho^2/2 l(w), which misses the tie and lacks the last term.
- average: E_e L(w + e), with e of variance s^2 in each weight:
  w = w* - s^2/2 H^-1 grad tr H.
- one step, full batch: w <- w - rate * g(w + rho g / |g|). By convexity
  g(w) . g(w + rho g / |g|) >= |g(w)|^2, so the flow ends at w* for every rho:
  the excess is zero, and a finite rate hovers at rate * l * rho / (2 - rate l).
- one step, example by example: for a linear model e is -rho y x / |x|, so this
  is min_w E l(y w.x - rho |x|), of first order in rho.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from scipy.special import expit

RHOS = (0.05, 0.1, 0.2, 0.4, 0.8)
FRACTIONS = (0.1, 0.25, 0.5)


class Setting(NamedTuple):
    """A distribution of the toy model.

    Attributes:
        p: probability that the robust feature is the label, in (1/2, 1).
        eta: mean of a non-robust feature times the label, > 0.
        d: number of non-robust features, >= 1.
    """

    p: float
    eta: float
    d: int

    @property
    def log_odds(self):
        """Returns the label's log-odds given the robust feature."""
        return np.log(self.p / (1 - self.p))

    def bayes(self, epsilon=0.0):
        """Returns the best weights under an attack by epsilon."""
        means = np.full(self.d, self.eta - epsilon)
        return np.concatenate([[self.log_odds], 2 * means])


CENTRE = Setting(0.9, 0.3, 10)
WEAK = Setting(0.9, 0.1, 1)
DOUBTFUL = Setting(0.7, 0.3, 1)  # A ball per example lowers W_R.
AROUND = (
    CENTRE,
    *(CENTRE._replace(p=p) for p in (0.7, 0.99)),
    *(CENTRE._replace(eta=eta) for eta in (0.1, 1.0)),
    *(CENTRE._replace(d=d) for d in (1, 100)),
    WEAK,
)
# Without eta 1, d 100: with a Bayes error of 1e-23 the loss is already minimal.
GRID = tuple(
    Setting(p, eta, d)
    for p in (0.7, 0.9, 0.99)
    for eta, d in ((0.1, 1), (0.3, 1), (0.1, 10), (0.3, 10), (1.0, 10))
)


def published_excess(rho):
    """Returns SAM's excess as published: 2/3 rho^2."""
    return 2 / 3 * rho**2


def adversarial_excess(fraction):
    """Returns AT's exact excess for an epsilon / eta."""
    return fraction / (1 - fraction)


def equivalent_fraction(excess):
    """Returns the epsilon / eta at which AT has an excess."""
    return excess / (1 + excess)


class Loss(NamedTuple):
    """A function of the margin y w.x, and its derivatives."""

    value: Callable
    slope: Callable
    curvature: Callable


LOGISTIC = Loss(
    lambda m: np.logaddexp(0, -m),
    lambda m: -expit(-m),
    lambda m: expit(m) * expit(-m),
)
EXPONENTIAL = Loss(
    lambda m: np.exp(-m), lambda m: -np.exp(-m), lambda m: np.exp(-m)
)
SQUARE = Loss(lambda m: (1 - m) ** 2 / 2, lambda m: m - 1, np.ones_like)


class Points(NamedTuple):
    """Examples or quadrature nodes, and the mean loss over them.

    Attributes:
        features: y x, of shape (points, weights), the robust one first.
        shares: the weight of each point, summing to 1.
        pooled: a vector; its product with w is the mean non-robust weight.
        loss: a `Loss`.
        offset: a number, or a number for each point, subtracted from margins.
    """

    features: np.ndarray
    shares: np.ndarray
    pooled: np.ndarray
    loss: Loss = LOGISTIC
    offset: np.ndarray | float = 0.0

    def value(self, w):
        """Returns the mean loss at w, or at each row of w."""
        return self.shares @ self.loss.value(self._margins(w))

    def gradient(self, w):
        """Returns its gradient at w, or at each row of w."""
        slopes = self.loss.slope(self._margins(w))
        return (slopes.T * self.shares) @ self.features

    def hessian(self, w):
        """Returns its second derivatives at w."""
        curvatures = self.shares * self.loss.curvature(self._margins(w))
        return self.features.T @ (curvatures[:, None] * self.features)

    def ratio(self, w):
        """Returns W_R."""
        return w[0] / (self.pooled @ w)

    def excess(self, w, base):
        """Returns W_R divided by that of other weights, minus 1."""
        return self.ratio(w) / self.ratio(base) - 1

    def _margins(self, w):
        return self.features @ w.T - self.offset


class Sample(NamedTuple):
    """Examples: x of shape (n, d + 1) and labels y of 1 and -1."""

    x: np.ndarray
    y: np.ndarray

    def points(self, epsilon=0.0):
        """Returns points under attack, for non-negative non-robust weights."""
        features = self.y[:, None] * self.x
        features[:, 1:] -= epsilon
        n, k = features.shape
        pooled = np.append(0.0, np.full(k - 1, 1 / (k - 1)))
        return Points(features, np.full(n, 1 / n), pooled)


def draw(setting, n, seed):
    """Draws a `Sample` of n examples."""
    random = np.random.default_rng(seed)
    y = random.choice([-1.0, 1.0], n)
    robust = np.where(random.random(n) < setting.p, y, -y)
    noise = random.standard_normal((n, setting.d))
    return Sample(
        np.column_stack([robust, setting.eta * y[:, None] + noise]), y
    )


def population(setting, epsilon=0.0, loss=LOGISTIC):
    """Returns the whole distribution, as quadrature nodes, in three weights.

    All non-robust weights are equal at an optimum. Two directions represent
    them: one along (1, ..., 1) / sqrt(d), with the feature N(eta sqrt(d), 1),
    and, for perturbations, one across, with the feature N(0, 1). All results
    of them depend on eta and d only by eta sqrt(d). The trapezoidal rule is
    exact to rounding here; Gauss-Hermite quadrature needs more nodes.

    Args:
        setting: a `Setting`.
        epsilon: the attack's radius, below eta.
        loss: a `Loss`.
    """
    along = np.arange(-68, 69) / 8
    density = np.exp(-(along**2) / 2)
    across, mass = np.polynomial.hermite_e.hermegauss(8)
    if setting.d == 1:
        across, mass = np.zeros(1), np.ones(1)
    mean = (setting.eta - epsilon) * np.sqrt(setting.d)
    grid = np.meshgrid([1.0, -1.0], mean + along, across, indexing="ij")
    shares = np.einsum(
        "i,j,k->ijk", [setting.p, 1 - setting.p], density, mass
    ).ravel()
    weights = 2 if setting.d == 1 else 3
    features = np.stack([axis.ravel() for axis in grid[:weights]], axis=1)
    pooled = np.array([0, 1 / np.sqrt(setting.d), 0])[:weights]
    return Points(features, shares / shares.sum(), pooled, loss)


def on_a_line(setting):
    """Returns the setting of one non-robust feature with the same optima."""
    return setting._replace(eta=setting.eta * setting.d**0.5, d=1)


def example_balls(points, rho):
    """Returns points perturbed by SAM for each example alone.

    Args:
        points: `Points` with all of y x as features.
        rho: the radius.
    """
    norms = np.linalg.norm(points.features, axis=1)
    return points._replace(offset=rho * norms)


def population_example_balls(setting, rho):
    """Returns the same for the population; features across have nodes."""
    points = population(on_a_line(setting))
    if setting.d == 1:
        return example_balls(points, rho)
    nodes = 24
    half, mass = scipy.special.roots_genlaguerre(nodes, (setting.d - 3) / 2)
    shares = np.outer(points.shares, mass / mass.sum()).ravel()
    features = np.repeat(points.features, nodes, axis=0)
    squares = (features**2).sum(axis=1) + np.tile(2 * half, len(points.shares))
    return points._replace(
        features=features, shares=shares, offset=rho * np.sqrt(squares)
    )


def minimiser(points):
    """Returns the weights of the least mean loss, by Newton's method."""
    w = np.zeros(points.features.shape[1])
    for _ in range(200):
        step = np.linalg.solve(points.hessian(w), points.gradient(w))
        # Far away the loss is flat and a full step may go beyond it.
        step /= max(1.0, np.linalg.norm(step))
        w = w - step
        if np.linalg.norm(step) < 1e-13 * (1 + np.linalg.norm(w)):
            break
    return w


def unit(vectors):
    """Divides each row by its norm."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def climbed(points, w, e):
    """Climbs to the loss's maximum on a sphere around w, starting at e.

    Makes Newton steps on the sphere where the loss is concave there; else e
    moves to the gradient's direction, which ascends, since the loss is convex.

    Args:
        points: `Points` with a convex loss.
        w: the sphere's centre.
        e: the starting point on the sphere, relative to w.
    """
    radius = np.linalg.norm(e)
    for _ in range(60):
        gradient = points.gradient(w + e)
        tangent = np.linalg.qr(np.column_stack([e, np.eye(len(e))]))[0][:, 1:]
        slope = tangent.T @ gradient
        if np.linalg.norm(slope) < 1e-13 * np.linalg.norm(gradient):
            break
        bend = tangent.T @ points.hessian(w + e) @ tangent
        bend -= gradient @ e / radius**2 * np.eye(len(slope))
        step = tangent @ np.linalg.solve(bend, slope)
        concave = np.linalg.eigvalsh(bend)[-1] < 0
        near = np.linalg.norm(step) < radius / 2
        e = radius * unit(e - step if concave and near else gradient)
    return e


def directions(points, w):
    """Returns starting points for the loss's maxima on a sphere around w."""
    axes = np.linalg.eigh(points.hessian(w))[1].T
    random = np.random.default_rng(0).standard_normal((12, len(w)))
    return np.vstack([axes, -axes, -unit(w), unit(random)])


def maxima(points, w, radius, starts):
    """Returns the local maxima on a sphere that `starts` lead to."""
    for _ in range(10):
        starts = unit(points.gradient(w + radius * starts))
    found: list = []
    for start in starts:
        top = climbed(points, w, radius * start) / radius
        if all(np.linalg.norm(top - other) > 1e-6 for other in found):
            found.append(top)
    return np.array(found)


def worst_case(points, rho, relative=False):
    """Returns SAM's exact optimum: min_w max_{|e| <= rho} L(w + e).

    The maximum is on the sphere, since the loss is convex. A smooth problem
    has a constraint for each perturbation that was a local maximum so far;
    it is solved again until the search finds nothing that is higher.

    Args:
        points: `Points` with a convex loss.
        rho: the radius, > 0.
        relative: whether the radius is rho |w| instead.

    Returns:
        The weights.

    Raises:
        ValueError: if higher maxima never end.
    """
    base = minimiser(points)
    size = rho * (np.linalg.norm(base) if relative else 1)
    lowest = points.value(base)
    # In these units, loss and weights move by about 1.
    gain = size**2 * np.linalg.eigvalsh(points.hessian(base))[-1]

    def weights(z):
        return base + size**2 * z[:-1]

    def radius(w):
        return rho * np.linalg.norm(w) if relative else rho

    def heights(w, directions):
        moved = w + radius(w) * directions
        return (points.value(moved) - lowest) / gain

    def slopes(w, directions):
        gradients = points.gradient(w + radius(w) * directions)
        if relative:
            along = (gradients * directions).sum(axis=1)
            gradients = gradients + rho * np.outer(along, unit(w))
        return gradients * size**2 / gain

    tolerance = 1e-10 * size**2
    z = np.zeros(len(base) + 1)
    last = np.eye(len(z))[-1]
    known = np.empty((0, len(base)))
    found = directions(points, base)
    for _ in range(40):
        w = weights(z)
        level = heights(w, known).max(initial=-np.inf) + tolerance
        found = maxima(points, w, radius(w), found)
        if heights(w, found).max() < level:
            found = maxima(points, w, radius(w), directions(points, w))
        tops = heights(w, found)
        if tops.max() < level:
            return w
        known = np.vstack([known, found])
        z[-1] = tops.max()
        z = scipy.optimize.minimize(
            lambda z: z[-1],
            z,
            jac=lambda z: last,
            constraints={
                "type": "ineq",
                "fun": lambda z, k=known: z[-1] - heights(weights(z), k),
                "jac": lambda z, k=known: np.column_stack(
                    [-slopes(weights(z), k), np.ones(len(k))]
                ),
            },
            method="SLSQP",
            options={"ftol": 1e-16, "maxiter": 100},
        ).x
    raise ValueError(
        f"The worst case's optimum was not found. Received: rho={rho}"
    )


def sharpened(points, w):
    """Returns a minimum's shift by SAM over rho^2 as rho goes to 0.

    Args:
        points: `Points` with the logistic loss.
        w: their minimiser.

    Returns:
        A dict of shifts: `worst` and `penalty` as at the top, and `relative`,
        the worst case within rho |w|.
    """
    margins = points.features @ w
    thirds = -LOGISTIC.curvature(margins) * np.tanh(margins / 2)
    hessian = points.hessian(w)
    values, axes = np.linalg.eigh(hessian)
    top, v = values[-1], axes[:, -1]
    along = points.features @ v
    bend = (points.shares * thirds * along**2) @ points.features
    penalty = -np.linalg.solve(hessian, bend) / 2
    worst = penalty + bend @ v / (3 * top) * v
    pull = axes @ ((top / values - 1) * (axes.T @ w))
    return {
        "worst": worst,
        "penalty": penalty,
        "relative": w @ w * worst - pull,
    }


def expansion(setting):
    """Returns the excess over rho^2 as rho goes to 0, by the formulas above.

    Args:
        setting: a `Setting`.

    Returns:
        A dict of `sharpened`'s, and of `gaussian`, the average over normal
        noise of deviation rho (a third of it is that of the cube, 1 / (d + 3)
        of it that of the ball); and of `example`, example by example, over rho.
    """
    line = on_a_line(setting)
    points, w = population(line), line.bayes()
    margins = points.features @ w
    curvatures = points.shares * LOGISTIC.curvature(margins)
    squares = setting.d + points.features[:, 1] ** 2
    noise = (curvatures * np.tanh(margins / 2) * squares) @ points.features
    balls = population_example_balls(setting, 1.0)
    pulls = balls.shares * LOGISTIC.curvature(balls.features @ w)
    pull = (pulls * balls.offset) @ balls.features
    shifts = sharpened(points, w) | {
        "gaussian": np.linalg.solve(points.hessian(w), noise / 2),
        "example": np.linalg.solve(points.hessian(w), pull),
    }
    return {
        name: float(shift[0] / w[0] - shift[1] / w[1])
        for name, shift in shifts.items()
    }


def band(p, slack=0.2):
    """Returns the band of k where 2/3 rho^2 is right for the worst case.

    The excess over rho^2 as rho goes to 0 depends on eta and d by
    k = eta sqrt(d) alone, and falls with it to below 0 until it turns.

    Args:
        p: probability that the robust feature is the label, in (1/2, 1).
        slack: largest relative error.

    Returns:
        A dict: it is right within `slack` for k from `low` to `high`; from
        `sign` on it is negative; `least` is the least that it comes to.
    """

    def worst(k):
        return expansion(Setting(p, k, 1))["worst"]

    def where(level):
        return scipy.optimize.brentq(lambda k: worst(k) - level, 1e-3, turn)

    found = scipy.optimize.minimize_scalar(
        worst, bounds=(0.01, 4), method="bounded"
    )
    turn = found.x
    published = published_excess(1)
    return {
        "low": where((1 + slack) * published),
        "high": where((1 - slack) * published),
        "sign": where(0.0),
        "least": float(found.fun),
    }


def zero_one(setting):
    """Returns the excess of the error rate, averaged over noise.

    Its scale has no meaning, so the mean non-robust weight is kept at 1. An
    exact coefficient: 1 - 2 / d + (W_R* / d)^2.
    """
    ratio = setting.log_odds / (2 * setting.eta)
    return float(1 - 2 / setting.d + (ratio / setting.d) ** 2)
