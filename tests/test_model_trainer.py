"""Fitting: what it learns, when it stops, which weights and elites it leaves, and what it never looks at."""

import math

import numpy as np
import pytest
import torch as th
from model_helpers import ACTIONS, OBSERVATIONS, linear_step, make_world_model, mirror_of, random_transitions
from test_ensemble import member_networks
from torch import nn

from sb3_modelbased.common.model_trainer import ModelTrainer
from sb3_modelbased.common.type_aliases import Transitions

BATCH_SIZE = 16


def make_trainer(model=None, **kwargs) -> ModelTrainer:
    return ModelTrainer(model or make_world_model(), **{"batch_size": BATCH_SIZE, "max_gradient_steps": 100} | kwargs)


def holdout_mse_of_members(model, holdout):
    """By each member's own torch.nn network, in normalised units."""
    inputs = th.cat([holdout.observations, holdout.actions], dim=1)
    inputs = (inputs - model.input_normalizer.mean) / model.input_normalizer.std
    targets = th.cat([holdout.next_observations - holdout.observations, holdout.rewards.unsqueeze(1)], dim=1)
    targets = (targets - model.target_normalizer.mean) / model.target_normalizer.std
    with th.no_grad():
        outputs = [network(inputs) for network in member_networks(model.ensemble.mlp)]
    return [(output[:, : OBSERVATIONS + 1] - targets).square().mean().item() for output in outputs]


def test_it_learns_a_linear_system():
    model = make_world_model(ensemble_size=3, n_elites=2, net_arch=[32])
    trainer = make_trainer(model, batch_size=64, max_gradient_steps=1500, learning_rate=5e-3)
    report = trainer.fit(mirror_of(random_transitions(1000, terminations=True)))
    test = random_transitions(500, seed=1, terminations=True)
    with th.no_grad():
        step = model.step(test.observations, test.actions)
    # In units of what there is to predict: 5 % of the change of the observation, and of the reward
    change = test.next_observations - test.observations
    assert (step.next_observations - test.next_observations).square().mean().sqrt() < 0.05 * change.std()
    assert (step.rewards - test.rewards).square().mean().sqrt() < 0.05 * test.rewards.std()
    assert ((step.terminated > 0.5) == test.terminated.bool()).float().mean() > 0.97
    assert report.holdout_mse < 0.05**2
    assert bool(model.fitted)


def test_dropout_is_for_the_gradient_steps_only(monkeypatch):
    model = make_world_model(net_arch=[64], dropout=0.5)
    trainer, inputs, outputs = make_trainer(model), th.randn(7, OBSERVATIONS + ACTIONS), []
    original = trainer._gradient_step

    def gradient_step(data, rows):
        with th.no_grad():
            outputs.append([model.ensemble(inputs)[0] for _ in range(2)])
        original(data, rows)

    monkeypatch.setattr(trainer, "_gradient_step", gradient_step)
    report = trainer.fit(mirror_of(random_transitions(200)))
    assert not any(first.equal(second) for first, second in outputs)
    with th.no_grad():
        means = [model.ensemble(inputs)[0][model.elites] for _ in range(2)]
        imagined = model.elite_ensemble(inputs)[0]
    assert means[0].equal(means[1])
    assert th.allclose(imagined, means[0], atol=1e-6)
    # And what the report says is without it
    _, holdout_rows = mirror_of(random_transitions(200)).holdout_split(trainer.holdout_ratio, trainer.max_holdout_rows)
    errors = trainer.holdout_errors(mirror_of(random_transitions(200))[holdout_rows])
    assert report.holdout_mse == pytest.approx(errors.mse[model.elites].mean().item(), rel=1e-5)


def test_it_learns_the_noise():
    generator = th.Generator().manual_seed(2)
    observations, actions = th.randn(3000, OBSERVATIONS, generator=generator), th.rand(3000, ACTIONS, generator=generator)
    next_observations, rewards = linear_step(observations, actions)
    next_observations = next_observations + 0.5 * th.randn(3000, OBSERVATIONS, generator=generator)
    rewards = rewards + 2.0 * th.randn(3000, generator=generator)
    model = make_world_model(ensemble_size=2, n_elites=1, net_arch=[16])
    trainer = make_trainer(model, batch_size=64, max_gradient_steps=800, learning_rate=5e-3)
    trainer.fit(mirror_of(Transitions(observations, actions, next_observations, rewards, th.zeros(3000))))
    with th.no_grad():
        _, log_var, _ = model.ensemble(model.inputs(observations, actions))
    std = (0.5 * log_var).exp().mean(dim=(0, 1)) * model.target_normalizer.std
    assert std.tolist() == pytest.approx([0.5, 0.5, 0.5, 2.0], rel=0.15)


@pytest.mark.parametrize("known", [False, True])
def test_loss_against_torch_distributions(known):
    functions = {"reward_fn": lambda s, a, s2: s[..., 0], "termination_fn": lambda s, a, s2: s[..., 0] > 0}
    model = make_world_model(**functions if known else {})
    data = random_transitions(4 * 5, terminations=True)
    batch = Transitions(*(field.reshape(4, 5, *field.shape[1:]) for field in data))
    dims = OBSERVATIONS + (not known)
    expected = 0.0
    for i, network in enumerate(member_networks(model.ensemble.mlp)):
        inputs = th.cat([batch.observations[i], batch.actions[i]], dim=1)
        outputs = network((inputs - model.input_normalizer.mean) / model.input_normalizer.std)
        targets = batch.next_observations[i] - batch.observations[i]
        if not known:
            targets = th.cat([targets, batch.rewards[i].unsqueeze(1)], dim=1)
        targets = (targets - model.target_normalizer.mean) / model.target_normalizer.std
        high, low = model.ensemble.max_log_var[i, 0], model.ensemble.min_log_var[i, 0]
        log_var = low + nn.functional.softplus(high - nn.functional.softplus(high - outputs[:, dims : 2 * dims]) - low)
        expected -= th.distributions.Normal(outputs[:, :dims], (0.5 * log_var).exp()).log_prob(targets).mean()
        expected += 0.01 * (high - low).sum()
        if not known:
            bernoulli = th.distributions.Bernoulli(logits=outputs[:, -1])
            expected -= bernoulli.log_prob(batch.terminated[i]).mean()
    assert make_trainer(model).loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


class RecordingTrainer(ModelTrainer):
    """Keeps, at every look at the holdout, its rows, the members' weights and their errors; and the rows trained on."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.trained: list[Transitions] = []
        self.looks: list[tuple[Transitions, list[th.Tensor], th.Tensor]] = []

    def loss(self, batch):
        self.trained.append(batch)
        return super().loss(batch)

    def holdout_errors(self, holdout):
        errors = super().holdout_errors(holdout)
        weights = [parameter.detach().clone() for parameter in self.world_model.ensemble.parameters()]
        self.looks.append((holdout, weights, errors.mse))
        return errors


def test_every_member_returns_to_its_best_weights():
    # Few rows, noise and a high learning rate: the members overfit, each at its own time
    data = random_transitions(60)
    data = data._replace(rewards=data.rewards + 2 * th.randn(60))
    trainer = RecordingTrainer(
        make_world_model(), learning_rate=2e-2, batch_size=16, max_gradient_steps=10_000, patience=8, patience_steps=0
    )
    report = trainer.fit(mirror_of(data))
    looks = trainer.looks[:-1]  # the last one is at the weights that were restored
    assert len(looks) == report.epochs + 1
    best_epochs = []
    for member in range(4):
        best, best_mse = 0, looks[0][2][member].item()
        for epoch, (_, _, mse) in enumerate(looks):
            if mse[member] < 0.99 * best_mse:
                best, best_mse = epoch, mse[member].item()
        best_epochs.append(best)
        for parameter, weights in zip(trainer.world_model.ensemble.parameters(), looks[best][1], strict=True):
            assert parameter[member].equal(weights[member])
    assert 0 < min(best_epochs) < max(best_epochs) < report.epochs
    # Early stopping: the last improvement of any member was eight epochs ago
    assert report.epochs == max(best_epochs) + 8


def test_elites_are_the_best_on_the_holdout():
    model = make_world_model(ensemble_size=6, n_elites=3)
    data = mirror_of(random_transitions(100))
    trainer = RecordingTrainer(model, batch_size=16, max_gradient_steps=30)
    report = trainer.fit(data)
    errors = holdout_mse_of_members(model, trainer.looks[-1][0])
    assert model.elites.tolist() == np.argsort(errors)[:3].tolist()
    assert report.holdout_mse == pytest.approx(np.sort(errors)[:3].mean(), rel=1e-4)
    # Imagination evaluates their weights as they are now
    for elite, member in enumerate(model.elites.tolist()):
        assert model.elite_ensemble.mlp[0].weight[elite].equal(model.ensemble.mlp[0].weight[member])


def rows(transitions: Transitions) -> set[float]:
    """Which rows these are: their first observation is as good as a name."""
    return set(transitions.observations[..., 0].flatten().tolist())


def test_no_row_is_held_out_after_it_was_trained_on():
    data = mirror_of(random_transitions(40), capacity=150)
    trainer = RecordingTrainer(make_world_model(), batch_size=16, max_gradient_steps=20, max_holdout_rows=20)
    trained: set[float] = set()
    for fit in range(8):  # grows, is full after three, and wraps around
        trainer.trained.clear()
        trainer.looks.clear()
        trainer.fit(data)
        held_out = rows(trainer.looks[0][0])
        trained |= set().union(*map(rows, trainer.trained))
        assert held_out
        assert not held_out & trained
        data.extend(random_transitions(40, seed=fit + 1))


def test_bootstrap_and_epochs():
    n = 200
    data = mirror_of(random_transitions(n))
    trainer = RecordingTrainer(
        make_world_model(), learning_rate=0.0, batch_size=16, patience=3, patience_steps=0, max_gradient_steps=10_000
    )
    report = trainer.fit(data)
    training_rows = n - len(trainer.looks[0][0].rewards)
    steps_per_epoch = math.ceil(training_rows / 16)
    # Nothing improves without a learning rate
    assert report.epochs == 3
    assert report.gradient_steps == len(trainer.trained) == 3 * steps_per_epoch
    epochs = [trainer.trained[i * steps_per_epoch : (i + 1) * steps_per_epoch] for i in range(3)]
    resamples = []
    for member in range(4):
        names = [th.cat([batch.observations[member, :, 0] for batch in epoch]) for epoch in epochs]
        # The same resample, drawn with replacement, in another order
        assert names[0].sort().values.equal(names[1].sort().values)
        assert not names[0].equal(names[1])
        assert len(names[0]) == training_rows
        assert len(set(names[0].tolist())) / training_rows == pytest.approx(1 - 1 / math.e, abs=0.12)
        resamples.append(names[0].sort().values)
    assert not any(resamples[0].equal(other) for other in resamples[1:])


@pytest.mark.parametrize(("patience", "patience_steps", "epochs"), [(3, 0, 3), (3, 35, 4), (3, 30, 3), (1, 30, 3)])
def test_patience_in_epochs_and_in_updates(patience, patience_steps, epochs):
    data = mirror_of(random_transitions(200))
    rows, _ = data.holdout_split(0.2, 5000)
    batch_size = math.ceil(len(rows) / 10)  # ten updates per epoch
    trainer = ModelTrainer(
        make_world_model(), learning_rate=0.0, batch_size=batch_size, patience=patience, patience_steps=patience_steps
    )
    assert trainer.fit(data).epochs == epochs


def test_a_fit_draws_no_more_rows_than_it_gets_through(monkeypatch):
    drawn = []
    randint = th.randint
    monkeypatch.setattr(th, "randint", lambda high, size, **kwargs: drawn.append(size) or randint(high, size, **kwargs))
    trainer = RecordingTrainer(make_world_model(), batch_size=16, max_gradient_steps=3)
    report = trainer.fit(mirror_of(random_transitions(200)))
    assert drawn == [(4, 48)]
    assert (report.epochs, report.gradient_steps) == (1, 3)


@pytest.mark.parametrize("cap", [1, 7, 25])
def test_the_cap_on_gradient_steps(cap):
    trainer = RecordingTrainer(make_world_model(), batch_size=16, max_gradient_steps=cap, patience=100)
    report = trainer.fit(mirror_of(random_transitions(200)))  # about ten steps per epoch
    assert report.gradient_steps == len(trainer.trained) == cap


def test_the_size_of_the_holdout():
    data = mirror_of(random_transitions(5000))
    for ratio, max_rows, expected in [(0.2, 5000, 1000), (0.5, 5000, 2500), (0.2, 100, 100)]:
        trainer = RecordingTrainer(
            make_world_model(), max_gradient_steps=1, batch_size=16, holdout_ratio=ratio, max_holdout_rows=max_rows
        )
        trainer.fit(data)
        assert len(trainer.looks[0][0].rewards) == pytest.approx(expected, abs=5 * expected**0.5)


def test_the_smallest_data_set():
    model = make_world_model()
    report = make_trainer(model, max_gradient_steps=3).fit(mirror_of(random_transitions(2)))
    assert np.isfinite(report.holdout_mse)
    assert all(tensor.isfinite().all() for name, tensor in model.state_dict().items() if not name.startswith("observation_"))


def test_fits_are_warm_started():
    data = mirror_of(random_transitions(500))
    trainer = RecordingTrainer(make_world_model(), learning_rate=5e-3, batch_size=32, max_gradient_steps=300)
    first = trainer.fit(data)
    trainer.looks.clear()
    second = trainer.fit(data)
    start = trainer.looks[0][2]
    assert start[trainer.world_model.elites].mean().item() < 0.3  # a new network is at 1 or above
    assert second.holdout_mse <= first.holdout_mse * 1.001


def test_terminations_are_learned_when_there_is_nothing_else_to_learn():
    def noise_that_ends(n, seed, terminations):
        data = random_transitions(n, seed, terminations)
        noise = th.randn(n, OBSERVATIONS + 1, generator=th.Generator().manual_seed(seed))
        return data._replace(next_observations=data.observations + noise[:, :-1], rewards=noise[:, -1])

    # Noise around zero: a member that predicts zero, as all of them do here, has nothing to learn but terminations
    model = make_world_model(ensemble_size=2, n_elites=1, net_arch=[16])
    for parameter in (model.ensemble.mlp[-1].weight, model.ensemble.mlp[-1].bias):
        parameter.data[..., : OBSERVATIONS + 1] = 0.0
    trainer = make_trainer(model, learning_rate=5e-3, batch_size=64, max_gradient_steps=200)
    trainer.fit(mirror_of(noise_that_ends(1000, 1, terminations=True)))
    test = random_transitions(500, 2, terminations=True)
    with th.no_grad():
        ends = model.step(test.observations, test.actions).terminated
    assert ends[test.observations[:, 0] > 0.8].mean() > 0.7
    assert ends[test.observations[:, 0] < 0.2].mean() < 0.15


def test_holdout_errors_count_terminations_that_were_seen():
    data = random_transitions(50, terminations=True)
    model = make_world_model()
    trainer = make_trainer(model)
    assert not trainer.holdout_errors(data).cross_entropy.any()
    model.terminations_seen.fill_(True)
    errors = trainer.holdout_errors(data)
    inputs = th.cat([data.observations, data.actions], dim=1)
    inputs = (inputs - model.input_normalizer.mean) / model.input_normalizer.std
    for i, network in enumerate(member_networks(model.ensemble.mlp)):
        expected = -th.distributions.Bernoulli(logits=network(inputs)[:, -1]).log_prob(data.terminated).mean()
        assert errors.cross_entropy[i].item() == pytest.approx(expected.item(), rel=1e-4)
    assert errors.mse.tolist() == pytest.approx(holdout_mse_of_members(model, data), rel=1e-4)
