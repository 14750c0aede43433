"""Fitting the world model: bootstrap, holdout, early stopping, elites, and a cap on what one fit may cost."""

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch as th

from sb3_modelbased.common.buffers import ReplayMirror
from sb3_modelbased.common.compiled_call import CompiledCall
from sb3_modelbased.common.cuda_graph import GraphedCall, prepare_optimizers, set_learning_rate
from sb3_modelbased.common.ensemble import GaussianEnsemble, gaussian_nll, sampled_squared_error
from sb3_modelbased.common.errors import NonFiniteError
from sb3_modelbased.common.type_aliases import Transitions
from sb3_modelbased.common.world_model import WorldModel

# Weight of the log-variance bounds in the loss (PETS, appendix A.1)
LOG_VAR_BOUNDS_WEIGHT = 0.01
# A lower holdout error counts from this relative improvement on (MBPO's code)
MIN_IMPROVEMENT = 0.01
# Weights with a better classifier of terminations may be worse by this share of the mean squared error
MSE_TOLERANCE = 0.05


class ModelLoss(Protocol):
    """What a fit minimises, apart from the classifier's cross-entropy."""

    def __call__(self, ensemble: GaussianEnsemble, mean: th.Tensor, log_var: th.Tensor, targets: th.Tensor) -> th.Tensor:
        """
        :param ensemble: for penalties on its parameters
        :param mean: its prediction, in normalised units, [E, B, D]
        :param log_var: of the prediction, [E, B, D]
        :param targets: [E, B, D]
        :return: summed over members, because their gradients are independent; scalar
        """
        ...


def nll_loss(ensemble: GaussianEnsemble, mean: th.Tensor, log_var: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """The negative log-likelihood per dimension with the bounds' penalty (PETS). See :class:`ModelLoss`."""
    nll = gaussian_nll(mean, log_var, targets).mean(dim=(1, 2)).sum()
    return nll + LOG_VAR_BOUNDS_WEIGHT * ensemble.log_var_bounds_loss()


def sampled_mse_loss(ensemble: GaussianEnsemble, mean: th.Tensor, log_var: th.Tensor, targets: th.Tensor) -> th.Tensor:
    """
    The squared error of a sample (MEMB, equation 4), the mean over dimensions. See :class:`ModelLoss`.

    No penalty on the bounds: it would win against an error that wants no variance, and raise it.
    """
    return sampled_squared_error(mean, log_var, targets).mean(dim=(1, 2)).sum()


class FitReport(NamedTuple):
    """
    What a fit did.

    :param holdout_mse: mean over elites and dimensions, in normalised units
    :param holdout_nll: mean over elites and dimensions, in nats and normalised units
    :param epochs: passes over the training set, the last one possibly cut short
    :param gradient_steps: number of updates of the ensemble
    :param seconds: wall-clock time
    """

    holdout_mse: float
    holdout_nll: float
    epochs: int
    gradient_steps: int
    seconds: float


# On rows [E, B] of the data
GradientStep = Callable[[ReplayMirror, th.Tensor], None]


class _CompiledStep:
    """
    A gradient step of the model as compiled code, for batches of one size; others (an epoch's last) run eagerly.

    :param gradient_step: the eager step
    :param ensemble_size: E
    :param batch_size: rows per member
    """

    def __init__(self, gradient_step: Callable[[Transitions], None], ensemble_size: int, batch_size: int) -> None:
        self.gradient_step = gradient_step
        self.shape = (ensemble_size, batch_size)
        self.call = CompiledCall(gradient_step)

    def __call__(self, data: ReplayMirror, rows: th.Tensor) -> None:
        """
        :param data: real transitions
        :param rows: of the batch, [E, B]
        """
        (self.call if rows.shape == self.shape else self.gradient_step)(data[rows])


class _GraphedStep:
    """
    A gradient step of the model as a CUDA graph, for batches of one size; others (an epoch's last) run eagerly.

    :param gradient_step: the eager step
    :param ensemble_size: E
    :param batch_size: rows per member
    """

    def __init__(self, gradient_step: GradientStep, ensemble_size: int, batch_size: int) -> None:
        self.gradient_step = gradient_step
        self.shape = (ensemble_size, batch_size)
        self.data: ReplayMirror | None = None
        self.rows: th.Tensor | None = None
        self.call = GraphedCall(self._step, lambda: (id(self.data), self.data.address if self.data else 0))

    def _step(self) -> None:
        assert self.data is not None
        assert self.rows is not None
        self.gradient_step(self.data, self.rows)

    def __call__(self, data: ReplayMirror, rows: th.Tensor) -> None:
        """
        :param data: real transitions
        :param rows: of the batch, [E, B]
        """
        if rows.shape != self.shape:
            return self.gradient_step(data, rows)
        self.data = data
        if self.rows is None:
            self.rows = rows.clone()
        self.rows.copy_(rows)
        self.call()


class HoldoutErrors(NamedTuple):
    """
    How each member does on the holdout, in normalised units.

    :param mse: mean squared error over dimensions, [E]
    :param nll: negative log-likelihood over dimensions, in nats, [E]
    :param cross_entropy: of the learned termination, in nats; 0 where it is known or where none was ever seen, [E]
    """

    mse: th.Tensor
    nll: th.Tensor
    cross_entropy: th.Tensor


class ModelTrainer:
    """
    Fits a :class:`WorldModel`, each member on its own bootstrap of the data.

    Fits are warm-started. A fit stops when no member's holdout error improved for ``patience`` epochs and
    ``patience_steps`` updates, or after ``max_gradient_steps`` updates, so that its cost does not grow with the data; each
    member then returns to its best weights, and the best members become the elites.

    Both count: epochs over little data are only a few updates, in which a member that was fitted to less of it has no
    time to get better than it was, and after fit upon fit it would still be the first one.

    :param world_model: the model to fit
    :param learning_rate: of AdamW
    :param weight_decay: of AdamW
    :param batch_size: rows per member and update
    :param max_gradient_steps: most updates per fit
    :param patience: epochs without improvement after which a fit ends,
    :param patience_steps: and updates without improvement
    :param holdout_ratio: share of the data that judges
    :param max_holdout_rows: most rows that judge
    :param loss_fn: what is minimised: :func:`nll_loss`, :func:`sampled_mse_loss` or one like them
    """

    def __init__(
        self,
        world_model: WorldModel,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 256,
        max_gradient_steps: int = 1000,
        patience: int = 5,
        patience_steps: int = 100,
        holdout_ratio: float = 0.2,
        max_holdout_rows: int = 5000,
        loss_fn: ModelLoss = nll_loss,
    ) -> None:
        self.world_model = world_model
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_gradient_steps = max_gradient_steps
        self.patience = patience
        self.patience_steps = patience_steps
        self.holdout_ratio = holdout_ratio
        self.max_holdout_rows = max_holdout_rows
        self.loss_fn = loss_fn
        self.optimizer = th.optim.AdamW(
            world_model.ensemble.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )
        self.cuda_graphs = False
        self.compiled = False
        self._captured_step: _GraphedStep | _CompiledStep | None = None

    def fit(self, data: ReplayMirror) -> FitReport:
        """
        :param data: real transitions, at least two
        :return: what was done
        :raises NonFiniteError: if it diverged; the model is then as it was before
        """
        start = time.perf_counter()
        model, ensemble = self.world_model, self.world_model.ensemble
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        training_rows, holdout_rows = data.holdout_split(self.holdout_ratio, self.max_holdout_rows)
        model.fit_normalizers(data[:])
        holdout = data[holdout_rows]

        prepare_optimizers([self.optimizer], captured=self.cuda_graphs or self.compiled)
        set_learning_rate(self.optimizer, self.learning_rate)  # a loaded optimiser has the one it was saved with
        gradient_step = self._choose_gradient_step()

        parameters = list(ensemble.parameters())
        best = [parameter.detach().clone() for parameter in parameters]
        errors = self.holdout_errors(holdout)
        best_mse, best_cross_entropy = errors.mse, errors.cross_entropy
        epochs = gradient_steps = 0
        improved_at = (0, 0)  # epochs, gradient steps
        while gradient_steps < self.max_gradient_steps and (
            epochs - improved_at[0] < self.patience or gradient_steps - improved_at[1] < self.patience_steps
        ):
            if epochs == 0:
                # Bootstrap: each member keeps its own resample of the data during this fit, as much as the fit can get through
                n = len(training_rows)
                size = (ensemble.ensemble_size, min(n, self.max_gradient_steps * self.batch_size))
                bootstrap = training_rows[th.randint(n, size, device=data.device)]
            ensemble.train()
            order = th.rand(size, device=data.device).argsort(dim=1)
            for rows in bootstrap.gather(1, order).split(self.batch_size, dim=1):
                gradient_step(data, rows)
                gradient_steps += 1
                if gradient_steps >= self.max_gradient_steps:
                    break
            epochs += 1
            errors = self.holdout_errors(holdout)
            better = errors.mse < (1 - MIN_IMPROVEMENT) * best_mse
            # The classifier goes on learning when the rest has learned all there is
            sharper = errors.cross_entropy < (1 - MIN_IMPROVEMENT) * best_cross_entropy
            improved = better | (sharper & (errors.mse < (1 + MSE_TOLERANCE) * best_mse))
            best_mse = th.where(better, errors.mse, best_mse)
            best_cross_entropy = th.where(improved, errors.cross_entropy, best_cross_entropy)
            for kept, parameter in zip(best, parameters, strict=True):
                kept.copy_(th.where(improved.view(-1, 1, 1), parameter.detach(), kept))
            if bool(improved.any()):
                improved_at = (epochs, gradient_steps)

        if not bool(th.stack([tensor.isfinite().all() for tensor in (errors.mse, best_mse, *parameters)]).all()):
            model.load_state_dict(before)
            self.optimizer.state.clear()
            self.forget_graph()
            raise NonFiniteError(
                f"The world model's weights and its holdout error must stay finite, but after {epochs} epochs of a fit to "
                f"{len(data)} transitions its holdout errors are {errors.mse.tolist()}. The model is as it was before "
                "and can be saved. Lower `model_learning_rate`, or scale the observations and rewards of the environment."
            )
        with th.no_grad():
            for kept, parameter in zip(best, parameters, strict=True):
                parameter.copy_(kept)
        errors = self.holdout_errors(holdout)
        model.elites.copy_(errors.mse.argsort()[: model.n_elites])
        model.fitted.fill_(True)
        model.refresh_elites()
        return FitReport(
            holdout_mse=errors.mse[model.elites].mean().item(),
            holdout_nll=errors.nll[model.elites].mean().item(),
            epochs=epochs,
            gradient_steps=gradient_steps,
            seconds=time.perf_counter() - start,
        )

    def forget_graph(self) -> None:
        """Capture the gradient step anew: the optimiser's tensors were replaced, and a graph would go on with the old ones."""
        self._captured_step = None

    def loss(self, batch: Transitions) -> th.Tensor:
        """
        ``loss_fn``, plus the classifier's cross-entropy where termination is learned, summed over members.

        :param batch: one batch per member, [E, B, ...]
        :return: scalar
        """
        model = self.world_model
        mean, log_var, logits = model.ensemble(model.inputs(batch.observations, batch.actions))
        targets = model.target_normalizer.normalize(model.targets(batch))
        loss = self.loss_fn(model.ensemble, mean, log_var, targets)
        if model.learns_termination:
            loss = loss + _cross_entropy(logits, batch.terminated).sum()
        return loss

    def _choose_gradient_step(self) -> GradientStep:
        """
        :return: the eager gradient step, or the captured one
        """
        if not (self.cuda_graphs or self.compiled):
            self._captured_step = None  # it would go on with learning rates of then
            return self._gradient_step
        if self._captured_step is None:
            size = self.world_model.ensemble_size, self.batch_size
            graphed = self.cuda_graphs
            self._captured_step = _GraphedStep(self._gradient_step, *size) if graphed else _CompiledStep(self._update, *size)
        return self._captured_step

    def _gradient_step(self, data: ReplayMirror, rows: th.Tensor) -> None:
        self._update(data[rows])

    def _update(self, batch: Transitions) -> None:
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        self.optimizer.step()

    @th.no_grad()
    def holdout_errors(self, holdout: Transitions) -> HoldoutErrors:
        """
        :param holdout: [N, ...]
        :return: of every member, without dropout
        """
        model = self.world_model
        model.ensemble.eval()
        mean, log_var, logits = model.ensemble(model.inputs(holdout.observations, holdout.actions))
        targets = model.target_normalizer.normalize(model.targets(holdout))
        mse = (mean - targets).square().mean(dim=(1, 2))
        nll = gaussian_nll(mean, log_var, targets).mean(dim=(1, 2))
        if not model.learns_termination:
            return HoldoutErrors(mse, nll, th.zeros_like(mse))
        return HoldoutErrors(mse, nll, _cross_entropy(logits, holdout.terminated) * model.terminations_seen)


def _cross_entropy(logits: th.Tensor, terminated: th.Tensor) -> th.Tensor:
    """
    :param logits: of termination, [E, B, 1]
    :param terminated: [E, B] or [B]
    :return: mean per member, in nats, [E]
    """
    logits = logits.squeeze(-1)
    labels = terminated.expand_as(logits)
    return th.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)
