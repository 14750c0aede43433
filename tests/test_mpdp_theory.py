"""
What MPDP relies on, stated by theorems 1 and 3 of the paper (Li et al., 2023): checked on finite problems, where the
multi-step problem of equation 6 (with its missing gamma^H) is solved exactly.

Entropy-regularised throughout: the optimal one-step policy is a softmax and its value a log-sum-exp.
"""

import numpy as np
import pytest

ALPHA, GAMMA = 0.2, 0.9


class FiniteMDP:
    """
    A random finite problem, its policies and values as plain arrays.

    :param seed: of its transition probabilities, rewards and old policy
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n_states, self.n_actions = int(rng.integers(2, 8)), int(rng.integers(2, 5))
        # Concentration 0.3: some transitions are almost deterministic
        self.transitions = rng.dirichlet(np.full(self.n_states, 0.3), (self.n_states, self.n_actions))  # [S, A, S]
        self.rewards = rng.normal(size=(self.n_states, self.n_actions))
        self.old_policy = rng.dirichlet(np.ones(self.n_actions), self.n_states)  # [S, A]

    def q_values(self, values: np.ndarray) -> np.ndarray:
        """r + gamma E[V(s')], [S, A]"""
        return self.rewards + GAMMA * self.transitions @ values

    def evaluate(self, policy: np.ndarray) -> np.ndarray:
        """The soft value of a policy, from its linear equation rather than by iteration, [S]"""
        rewards = (policy * (self.rewards - ALPHA * np.log(policy))).sum(axis=1)
        dynamics = np.einsum("sa,sat->st", policy, self.transitions)
        return np.linalg.solve(np.eye(self.n_states) - GAMMA * dynamics, rewards)

    def plan(self, values: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Solve equation 6 backwards.

        :param values: V of the old policy, [S]
        :param horizon: H >= 1
        :return: J^H of the best plan [S] and its first policy [S, A]
        """
        for _ in range(horizon):
            scaled = self.q_values(values) / ALPHA
            policy = np.exp(scaled - scaled.max(axis=1, keepdims=True))
            policy /= policy.sum(axis=1, keepdims=True)
            values = ALPHA * (np.log(np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)) + scaled.max(axis=1))
        return values, policy

    def return_of(self, policies: list[np.ndarray], values: np.ndarray) -> np.ndarray:
        """J^H of given policies for the steps 0 ... H - 1, by its definition, [S]"""
        for policy in reversed(policies):
            values = (policy * (self.q_values(values) - ALPHA * np.log(policy))).sum(axis=1)
        return values


@pytest.fixture(scope="module")
def problems() -> list[FiniteMDP]:
    return [FiniteMDP(seed) for seed in range(100)]


@pytest.mark.parametrize("horizon", [1, 2, 5, 25])
def test_theorem_1_the_first_policy_of_the_best_plan_improves_every_state(problems: list[FiniteMDP], horizon: int) -> None:
    for problem in problems:
        old_values = problem.evaluate(problem.old_policy)
        objective, new_policy = problem.plan(old_values, horizon)
        new_values = problem.evaluate(new_policy)
        assert (new_values >= old_values - 1e-9).all()
        # The proof's middle term: V_old <= J^H <= V_new
        assert (objective >= old_values - 1e-9).all()
        assert (new_values >= objective - 1e-9).all()


def test_theorem_3_a_longer_plan_is_worth_no_less(problems: list[FiniteMDP]) -> None:
    for problem in problems:
        old_values = problem.evaluate(problem.old_policy)
        objectives = [problem.plan(old_values, horizon)[0] for horizon in range(1, 12)]
        assert (np.diff(objectives, axis=0) >= -1e-9).all()


def test_theorem_2_repeated_improvement_reaches_the_soft_optimum(problems: list[FiniteMDP]) -> None:
    for problem in problems[:20]:
        optimum, _ = problem.plan(np.zeros(problem.n_states), 500)  # value iteration
        policy = problem.old_policy
        for _ in range(30):
            _, policy = problem.plan(problem.evaluate(policy), 3)
        np.testing.assert_allclose(problem.evaluate(policy), optimum, atol=1e-6)


def test_the_solver_solves_the_planning_problem(problems: list[FiniteMDP]) -> None:
    """No other plan is better, and the solver's value is that of equation 6."""
    rng = np.random.default_rng(0)
    for problem in problems[:20]:
        old_values = problem.evaluate(problem.old_policy)
        best, _ = problem.plan(old_values, 3)
        policies = [problem.plan(old_values, horizon)[1] for horizon in (3, 2, 1)]
        np.testing.assert_allclose(problem.return_of(policies, old_values), best, atol=1e-9)
        for _ in range(20):
            others = [rng.dirichlet(np.ones(problem.n_actions), problem.n_states) for _ in range(3)]
            assert (problem.return_of(others, old_values) <= best + 1e-9).all()
