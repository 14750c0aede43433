"""What MAAC, MEMB and MPDP have in common: when to fit the model, what to save, what to log, what to refuse."""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar, NoReturn, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples, RolloutReturn, Schedule
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_modelbased.common.agent_view import AgentView, make_view
from sb3_modelbased.common.buffers import ReplayMirror
from sb3_modelbased.common.compiled_call import CompiledCall
from sb3_modelbased.common.cuda_graph import GraphedCall, are_capturable, prepare_optimizers, set_learning_rate
from sb3_modelbased.common.denormals import flushed_denormals
from sb3_modelbased.common.entropy import FixedEntropyCoef, LearnedEntropyCoef, make_entropy_coef
from sb3_modelbased.common.errors import (
    NonFiniteError,
    check_at_least,
    check_count,
    check_known_arguments,
    check_share,
    keys_of,
)
from sb3_modelbased.common.metrics import RunningMeans, Stopwatch
from sb3_modelbased.common.model_trainer import FitReport, ModelTrainer
from sb3_modelbased.common.policies import EnsembleCritic, FastActor, ModelBasedSACPolicy
from sb3_modelbased.common.termination_fns import termination_fn_from_env
from sb3_modelbased.common.type_aliases import RewardFn, TerminationFn
from sb3_modelbased.common.world_model import WorldModel

# Updates between two looks at whether the losses are finite: looking stalls a GPU
FINITE_CHECK_INTERVAL = 100
# A loaded model is not refitted to a replay buffer that starts anew before the buffer holds as many transitions as the
# model was fitted to, or this many: it would forget what it knows
MIN_REFIT_ROWS = 5_000

SelfModelBasedAlgorithm = TypeVar("SelfModelBasedAlgorithm", bound="ModelBasedAlgorithm")


class ModelBasedAlgorithm(OffPolicyAlgorithm):
    """
    The base of the model-based algorithms: an off-policy algorithm with a learned world model.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of all networks but the model (actor, critics, entropy coefficient); it can be
        a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer of real transitions
    :param learning_starts: env steps before the first model fit and the first update
    :param batch_size: minibatch size of each update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor
    :param train_freq: env steps (or ``(n, "episode")``) between updates
    :param gradient_steps: updates after each rollout; -1 for as many as env steps were taken
    :param action_noise: noise added to the policy's actions in the environment
    :param replay_buffer_class: Replay buffer class to use
    :param replay_buffer_kwargs: Keyword arguments of the replay buffer
    :param optimize_memory_usage: SB3's memory-efficient replay buffer
    :param ent_coef: entropy coefficient alpha, "auto" to learn it ("auto_0.1" to start from 0.1)
    :param target_entropy: target when learning ``ent_coef``, "auto" for minus the number of action dimensions
    :param target_update_interval: updates between two target network updates
    :param value_learning_rate: learning rate of the critics, or a schedule; None for ``learning_rate``
    :param ensemble_size: members of the dynamics ensemble
    :param n_elites: members, the best on the holdout, that imagine
    :param model_net_arch: hidden layers of each member
    :param model_activation_fn: activation of each member; smooth, because the policy's gradient runs through it
    :param model_dropout: probability of dropping a hidden unit of the model while it is fitted
    :param model_bfloat16: whether the model's hidden layers multiply in bfloat16: faster for large batches on processors and
        GPUs that have it
    :param model_learning_rate: learning rate of the model
    :param model_batch_size: rows per member and model update
    :param model_train_freq: env steps between two model fits
    :param model_gradient_steps: most model updates per fit: a fit's cost does not grow with the data
    :param model_kwargs: further arguments of :class:`~sb3_modelbased.common.model_trainer.ModelTrainer` (``weight_decay``,
        ``patience``, ``patience_steps``, ``holdout_ratio``, ``max_holdout_rows``)
    :param reward_fn: known reward function (raw observations, actions in env units, raw next observations) -> rewards;
        None to learn the reward
    :param termination_fn: known termination function with the same arguments; "gymnasium" for the one of a Gymnasium
        task; None to learn it
    :param cuda_graphs: on a CUDA device, run updates and model updates as CUDA graphs; no effect on a CPU
    :param compile_updates: on a CPU, run updates and model updates as compiled code, after half a minute or more of compiling
        and with a C++ compiler; ``gamma`` and other numbers must not change on the way. No effect on a CUDA device
    :param use_sde: Whether to use generalized State Dependent Exploration (gSDE)
    :param sde_sample_freq: Sample a new noise matrix every n steps when using gSDE
    :param use_sde_at_warmup: Whether to use gSDE instead of uniform sampling during the warm up phase
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation
    :param verbose: Verbosity level: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    """

    actor: FastActor
    critic: EnsembleCritic
    critic_target: EnsembleCritic
    entropy_coef: FixedEntropyCoef | LearnedEntropyCoef
    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": ModelBasedSACPolicy}

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 1000,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        ent_coef: str | float = "auto",
        target_entropy: str | float = "auto",
        target_update_interval: int = 1,
        value_learning_rate: float | Schedule | None = None,
        ensemble_size: int = 7,
        n_elites: int = 5,
        model_net_arch: Sequence[int] = (200, 200, 200, 200),
        model_activation_fn: type[nn.Module] = nn.SiLU,
        model_dropout: float = 0.0,
        model_bfloat16: bool = False,
        model_learning_rate: float = 1e-3,
        model_batch_size: int = 256,
        model_train_freq: int = 250,
        model_gradient_steps: int = 250,
        model_kwargs: dict[str, Any] | None = None,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | str | None = None,
        cuda_graphs: bool = True,
        compile_updates: bool = False,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        use_sde_at_warmup: bool = False,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
        **unknown: Any,
    ) -> None:
        check_known_arguments(type(self), unknown)
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            policy_kwargs=dict(policy_kwargs or {}),  # SB3 writes into it
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            use_sde=use_sde,
            sde_sample_freq=sde_sample_freq,
            use_sde_at_warmup=use_sde_at_warmup,
            support_multi_env=True,
        )
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.target_update_interval = target_update_interval
        self.value_learning_rate = value_learning_rate
        self.ensemble_size = ensemble_size
        self.n_elites = n_elites
        self.model_net_arch = model_net_arch
        self.model_activation_fn = model_activation_fn
        self.model_dropout = model_dropout
        self.model_bfloat16 = model_bfloat16
        self.model_learning_rate = model_learning_rate
        self.model_batch_size = model_batch_size
        self.model_train_freq = model_train_freq
        self.model_gradient_steps = model_gradient_steps
        self.model_kwargs = model_kwargs
        self.reward_fn = reward_fn
        self.termination_fn = termination_fn
        self.cuda_graphs = cuda_graphs
        self.compile_updates = compile_updates

        # State of the training that is saved with the agent
        self.model_fit_at: int | None = None  # env steps at the last fit
        self.model_fit_rows = 0  # transitions it was fitted to
        self.model_updates = 0  # gradient steps of the model so far
        self.imagined_transitions = 0
        self.stopwatch = Stopwatch()
        self._known_termination_fn: TerminationFn | None = None

        if _init_setup_model:
            self._setup_model()

    # -- Set-up -------------------------------------------------------------------------------------------------------

    def _setup_model(self) -> None:
        self._check_arguments()
        given_by_sb3 = ("observation_space", "action_space", "lr_schedule", "use_sde")
        with keys_of("policy_kwargs", self.policy_kwargs, self.policy_class, given_by_sb3):
            super()._setup_model()
        self.policy: ModelBasedSACPolicy
        self._create_aliases()
        # As an optimiser holds them: to walk through the modules takes longer than to average
        self._averaged_parameters: list[list[th.Tensor]] = [[*network.parameters()] for network in self._averaged_networks()]
        self._resolve_termination_fn()
        assert isinstance(self.action_space, spaces.Box)
        observation_dim = get_flattened_obs_dim(self.observation_space)
        action_dim = int(np.prod(self.action_space.shape))
        self.entropy_coef = make_entropy_coef(self.ent_coef, self.target_entropy, action_dim, self.lr_schedule(1)).to(
            self.device
        )
        # The model draws its weights aside: the policy's random numbers stay those of an agent without a model
        with th.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.world_model = self._make_world_model(observation_dim)
        given_by_us: dict[str, Any] = {
            "world_model": self.world_model,
            "learning_rate": self.model_learning_rate,
            "batch_size": self.model_batch_size,
            "max_gradient_steps": self.model_gradient_steps,
        }
        model_kwargs = self.model_kwargs or {}
        with keys_of("model_kwargs", model_kwargs, ModelTrainer, given_by_us):
            self.model_trainer = ModelTrainer(**given_by_us, **model_kwargs)
        self.model_trainer.cuda_graphs = self.cuda_graphs and self.device.type == "cuda"
        self.model_trainer.compiled = self._compiles
        self.real_data = ReplayMirror(self.buffer_size, observation_dim, action_dim, self.device)
        self.metrics = RunningMeans()
        self._view: AgentView = make_view(self._vec_normalize_env, self.device)
        self._captured_update: Callable[[Any], None] | None = None
        self._finite_parameters: dict[str, Any] = {}
        self._checked_at_update = self._n_updates
        if self._compiles_updates:
            self._check_optimizers()

    def _make_world_model(self, observation_dim: int, **kwargs: Any) -> WorldModel:
        """
        :param observation_dim: O
        :param kwargs: further arguments of the model, for an algorithm that has them
        :return: the model, on the training device
        """
        assert isinstance(self.action_space, spaces.Box)
        return WorldModel(
            observation_dim,
            self.action_space,
            ensemble_size=self.ensemble_size,
            n_elites=self.n_elites,
            net_arch=self.model_net_arch,
            activation_fn=self.model_activation_fn,
            dropout=self.model_dropout,
            bfloat16=self.model_bfloat16,
            reward_fn=self.reward_fn,
            termination_fn=self._known_termination_fn,
            **kwargs,
        ).to(self.device)

    def _create_aliases(self) -> None:
        """Names for the parts of the policy, as SB3's algorithms have them."""
        self.actor = self.policy.actor
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target

    def _resolve_termination_fn(self) -> None:
        if self.termination_fn is None or callable(self.termination_fn):
            self._known_termination_fn = self.termination_fn
        elif self.termination_fn == "gymnasium":
            if self.env is not None:  # without one, a loaded agent keeps the function it was saved with
                self._known_termination_fn = termination_fn_from_env(self.env)
        else:
            raise ValueError(
                "`termination_fn` must be a function (observations, actions, next_observations) -> bool, 'gymnasium' or "
                f"None, but it is {self.termination_fn!r}. Leave it out to learn termination from data."
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As in SB3; a known termination function is read anew from the environment.

        :param env: The environment for learning a policy
        :param force_reset: Force call to ``reset()`` before training
        """
        super().set_env(env, force_reset=force_reset)
        self._view = make_view(self._vec_normalize_env, self.device)
        self._captured_update = None
        if self.termination_fn == "gymnasium":
            self._resolve_termination_fn()
            self.world_model.termination_fn = self._known_termination_fn

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        """
        SB3's. Captured updates hold on to the optimisers' old tensors and are captured anew.

        :raises RuntimeError: if the parameters are those of other networks
        """
        try:
            super().set_parameters(*args, **kwargs)
        except RuntimeError as error:
            raise RuntimeError(
                "The parameters must fit the agent's networks, but they are those of others. What decides about networks "
                "(`policy_kwargs`, `ensemble_size`, `n_elites`, `model_net_arch`, a known or a learned reward or termination, "
                "a fixed or a learned `ent_coef`, MPDP's `horizon`) cannot be changed when an agent is loaded. The error "
                f"was: {error}"
            ) from error
        self._captured_update = None
        self.model_trainer.forget_graph()

    # -- What is refused ----------------------------------------------------------------------------------------------

    @classmethod
    def _wrap_env(cls, env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        """SB3's, behind a look at the spaces: SB3's own errors name remedies that do not exist here."""
        cls._check_spaces(env.observation_space, env.action_space)
        return super()._wrap_env(env, verbose, monitor_wrapper)

    def _check_optimizers(self) -> None:
        for optimizer in self._optimizers():
            fused = all(group.get("fused") for group in optimizer.param_groups)
            if not fused or type(optimizer) not in (th.optim.Adam, th.optim.AdamW):
                kwargs = (self.policy_kwargs or {}).get("optimizer_kwargs")
                raise ValueError(
                    "`compile_updates=True` needs torch's Adam or AdamW with `fused=True`, which read their learning rates "
                    f"from tensors, but `policy_kwargs` makes {type(optimizer).__name__} with optimizer_kwargs={kwargs}. "
                    "Leave `optimizer_class` out and add fused=True to `optimizer_kwargs`, or pass compile_updates=False."
                )

    @classmethod
    def _check_spaces(cls, observations: spaces.Space, actions: spaces.Space) -> None:
        """
        :param observations: the environment's observation space
        :param actions: its action space
        :raises ValueError: if the algorithm has no use for them
        """
        name = cls.__name__
        if not isinstance(actions, spaces.Box):
            raise ValueError(
                f"{name} needs continuous actions (a Box action space), but the environment has {actions}. Use DQN or PPO of "
                "Stable-Baselines3 for discrete actions."
            )
        if not np.all(np.isfinite(np.concatenate([actions.low.ravel(), actions.high.ravel()]))):
            raise ValueError(
                f"{name} needs bounded actions, because the policy squashes them, but the environment has {actions}. "
                "Wrap it in gymnasium.wrappers.RescaleAction or give the space finite bounds."
            )
        if not isinstance(observations, spaces.Box) or is_image_space(observations):
            raise ValueError(
                f"{name} needs vector observations (a Box of numbers, no images), but the environment has {observations}. "
                "Wrap a Dict space in gymnasium.wrappers.FlattenObservation; encode images into vectors first."
            )

    def _check_arguments(self) -> None:
        check_share("gamma", self.gamma)
        check_share("tau", self.tau)
        check_count("buffer_size", self.buffer_size, 1)
        check_at_least("learning_starts", self.learning_starts, 0)
        check_count("batch_size", self.batch_size, 1)
        check_count("gradient_steps", self.gradient_steps, -1)
        check_count("target_update_interval", self.target_update_interval, 1)
        if isinstance(self.value_learning_rate, str):
            raise ValueError(
                "`value_learning_rate` must be a number or a function of the remaining progress, but it is "
                f"{self.value_learning_rate!r}: rl_zoo3 makes a schedule of `learning_rate` only. Pass a number."
            )
        if self.replay_buffer_class is not None and issubclass(self.replay_buffer_class, NStepReplayBuffer):
            raise ValueError(
                "`replay_buffer_class` must store single transitions, because the model learns from them, but it is "
                f"{self.replay_buffer_class.__name__}. Leave it out; for targets of several steps use the model's."
            )
        check_count("ensemble_size", self.ensemble_size, 1)
        check_count("n_elites", self.n_elites, 1)
        check_share("model_dropout", self.model_dropout)
        check_count("model_train_freq", self.model_train_freq, 1)
        check_count("model_gradient_steps", self.model_gradient_steps, 1)
        check_count("model_batch_size", self.model_batch_size, 1)
        if self.n_elites > self.ensemble_size:
            raise ValueError(
                f"`ensemble_size` must be at least `n_elites`, but ensemble_size={self.ensemble_size} and "
                f"n_elites={self.n_elites}. Pass n_elites={self.ensemble_size} or fewer."
            )
        if self.reward_fn is not None:
            if not callable(self.reward_fn):
                raise ValueError(
                    "`reward_fn` must be a function (observations, actions, next_observations) -> rewards, but it is "
                    f"{self.reward_fn!r}. Leave it out to learn the reward."
                )
            self._check_user_fn("reward_fn", self.reward_fn)
        if callable(self.termination_fn):
            self._check_user_fn("termination_fn", self.termination_fn)

    def _example_pairs(self) -> tuple[th.Tensor, th.Tensor]:
        """
        :return: observations [3, 2, O] and actions [3, 2, A] to try a user's function on: imagination has two leading
            dimensions
        """
        assert isinstance(self.action_space, spaces.Box)
        observations = th.zeros(3, 2, get_flattened_obs_dim(self.observation_space), device=self.device)
        return observations, th.zeros(3, 2, int(np.prod(self.action_space.shape)), device=self.device)

    def _check_user_fn(self, name: str, function: Any) -> None:
        """Call a user's function once."""
        observations, actions = self._example_pairs()
        result = function(observations, actions, observations)
        if not isinstance(result, th.Tensor) or result.shape != (3, 2):
            got = tuple(result.shape) if isinstance(result, th.Tensor) else type(result).__name__
            raise ValueError(
                f"`{name}` must return a tensor with one number per transition: for observations of shape "
                f"{tuple(observations.shape)} it must be of shape (3, 2), but it is {got}. Work on the last dimension only, "
                "for example `next_observations[..., 0]`, and keep no dimension of size 1."
            )

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        action, buffer_action = super()._sample_action(learning_starts, action_noise, n_envs)
        # torch's distributions refuse such a policy's outputs themselves, but not in a process that has compiled anything
        if not np.isfinite(buffer_action).all():
            self._stop_diverged("the policy's outputs")
        return action, buffer_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        terminal = [info["terminal_observation"] for info in infos if "terminal_observation" in info]
        if not all(np.isfinite(array).all() for array in (self._last_obs, new_obs, reward, *terminal)):
            raise NonFiniteError(
                "The environment must return finite observations and rewards, but at env step "
                f"{self.num_timesteps} it went from the observation {self._last_obs} to {new_obs}"
                f"{f', by way of {terminal} at the end of an episode,' if terminal else ''} with the reward {reward}. The "
                "transition was not stored; wrap the environment to end the episode, or look for the cause with "
                "stable_baselines3.common.vec_env.VecCheckNan."
            )
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)
        if replay_buffer.optimize_memory_usage and self.uses_model:
            self.real_data.sync(replay_buffer)  # before the buffer overwrites the last observation of an episode

    # -- Training -----------------------------------------------------------------------------------------------------

    def learn(self: SelfModelBasedAlgorithm, *args: Any, **kwargs: Any) -> SelfModelBasedAlgorithm:
        """SB3's, with a last look at whether everything is finite."""
        try:
            super().learn(*args, **kwargs)
        except ValueError as error:
            # Before our next look, torch refuses the distribution of a policy whose outputs are not finite
            if "to satisfy the constraint" in str(error) and self._finite_parameters:
                self._stop_diverged("the policy's outputs")
            raise
        if self._n_updates > self._checked_at_update:
            self._check_finite()
        return self

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        """SB3's; where it sets the env steps back, what is due after so many of them moves along."""
        steps = self.num_timesteps
        prepared = super()._setup_learn(*args, **kwargs)
        self._shift_schedule(self.num_timesteps - steps)
        return prepared

    def _shift_schedule(self, steps: int) -> None:
        """
        :param steps: added to every count of env steps that is kept to know when something is due again
        """
        if self.model_fit_at is not None:
            self.model_fit_at += steps

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """SB3's, with its time taken."""
        with self.stopwatch.measure("env"):
            return super().collect_rollouts(*args, **kwargs)

    @flushed_denormals()
    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Bring the model up to date where that is due, then update the agent.

        :param gradient_steps: number of updates
        :param batch_size: minibatch size
        """
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        self._view.refresh()
        self._prepare_imagination()
        if self.uses_model and self.model_fit_at is None:
            return  # too little data for a first fit
        if not self._finite_parameters:
            self._check_finite()
        with self.stopwatch.measure("updates"):
            for _ in range(gradient_steps):
                self._n_updates += 1
                self._run_update(batch_size)
                self.imagined_transitions += self._imagined_per_update(batch_size)
                if self._n_updates % self.target_update_interval == 0:
                    self._update_targets()
        if self._n_updates - self._checked_at_update >= FINITE_CHECK_INTERVAL:
            self._check_finite()

    def _run_update(self, batch_size: int) -> None:
        """
        One :meth:`_update` on a batch of its own: eagerly, as a CUDA graph or compiled.

        :param batch_size: minibatch size
        """
        if self._graphs_updates:
            # The batch is drawn within the graph
            if self._captured_update is None:
                self._captured_update = GraphedCall(self._sample_and_update, self._static_addresses)
            self._captured_update(batch_size)
        elif self._compiles_updates:
            if self._captured_update is None:
                self._captured_update = CompiledCall(self._update)
            self._captured_update(self._sample_batch(batch_size))
        else:
            self._captured_update = None  # it would go on with learning rates of then
            self._sample_and_update(batch_size)

    def _sample_and_update(self, batch_size: int) -> None:
        self._update(self._sample_batch(batch_size))

    def _update(self, batch: ReplayBufferSamples) -> None:
        """
        One update of the agent, of everything but the target networks. It neither reads from the device nor counts in
        Python, so that it can be captured as a CUDA graph, or recorded and compiled.

        :param batch: transitions in environment units
        """
        raise NotImplementedError()

    def _sample_batch(self, batch_size: int) -> ReplayBufferSamples:
        """
        :param batch_size: minibatch size
        :return: what an update learns from, in environment units: real transitions, where nothing else is said
        """
        return self._real_batch(batch_size)

    def _imagined_per_update(self, batch_size: int) -> int:
        """
        :param batch_size: minibatch size
        :return: model steps of one :meth:`_update`, summed over rows
        """
        return 0

    def _averaged_networks(self) -> tuple[nn.Module, nn.Module]:
        """
        :return: the target network, and the one that it follows
        """
        return self.critic_target, self.critic

    @th.no_grad()
    def _update_targets(self) -> None:
        """Polyak averaging of the target network."""
        targets, online = self._averaged_parameters
        th._foreach_lerp_(targets, online, self.tau)

    def _static_addresses(self) -> tuple[int, ...]:
        """
        :return: addresses of the tensors that :meth:`_update` reads and that may move
        """
        return (self.real_data.address,)

    @property
    def _samples_from_mirror(self) -> bool:
        """
        Whether real batches come from the mirror, which is faster and lies on the device. Other replay buffers sample in
        ways of their own, and where no model is fitted there is a mirror on a GPU only.
        """
        return type(self.replay_buffer) is ReplayBuffer and (self.uses_model or self.device.type == "cuda")

    @property
    def _graphs_updates(self) -> bool:
        """
        Whether an update runs as a CUDA graph. SB3's gSDE reads from the device, which a graph must not, and an optimiser
        without ``capturable`` keeps its learning rate.
        """
        on_cuda = self.cuda_graphs and self.device.type == "cuda"
        return on_cuda and self._samples_from_mirror and not self.use_sde and are_capturable(self._optimizers())

    @property
    def _compiles(self) -> bool:
        """Whether to compile what can be compiled."""
        return self.compile_updates and self.device.type == "cpu"

    @property
    def _compiles_updates(self) -> bool:
        """Whether an update runs as compiled code. gSDE replaces its tensors."""
        return self._compiles and not self.use_sde

    def _update_learning_rate(self, optimizers: list[th.optim.Optimizer] | th.optim.Optimizer) -> None:
        learning_rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", learning_rate)
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        prepare_optimizers(optimizers, captured=self._graphs_updates or self._compiles_updates)
        for optimizer in optimizers:
            set_learning_rate(optimizer, learning_rate)
        set_learning_rate(self.critic.optimizer, self.value_lr_schedule(self._current_progress_remaining))

    def _setup_lr_schedule(self) -> None:
        super()._setup_lr_schedule()
        value_learning_rate = self.learning_rate if self.value_learning_rate is None else self.value_learning_rate
        self.value_lr_schedule = FloatSchedule(value_learning_rate)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        """
        :return: the optimisers of an update
        """
        optimizers: list[Any] = [self.actor.optimizer, self.critic.optimizer]
        if self.entropy_coef.optimizer is not None:
            optimizers.append(self.entropy_coef.optimizer)
        return optimizers

    @property
    def uses_model(self) -> bool:
        """Whether anything would look at the model; if not, it isn't fitted."""
        return True

    def _prepare_imagination(self) -> None:
        """Fit the model where that is due."""
        assert self.replay_buffer is not None
        if self.uses_model or self._samples_from_mirror:
            self.real_data.sync(self.replay_buffer)
        if self.uses_model and self._fit_is_due():
            with self.stopwatch.measure("model_fit"):
                self._log_fit(self._fit_model())

    def _fit_is_due(self) -> bool:
        enough = len(self.real_data) >= max(2, min(self.model_fit_rows, MIN_REFIT_ROWS))
        return enough and (self.model_fit_at is None or self.num_timesteps - self.model_fit_at >= self.model_train_freq)

    def _fit_model(self) -> FitReport:
        """
        :return: what the fit did
        """
        report = self.model_trainer.fit(self.real_data)
        self.model_fit_at, self.model_fit_rows = self.num_timesteps, len(self.real_data)
        self.model_updates += report.gradient_steps
        return report

    def _log_fit(self, report: FitReport) -> None:
        self.logger.record("model/holdout_mse", report.holdout_mse)
        self.logger.record("model/holdout_nll", report.holdout_nll)
        self.logger.record("model/epochs", report.epochs)
        self.logger.record("model/gradient_steps", report.gradient_steps)
        self.logger.record("model/fit_seconds", report.seconds)
        self.logger.record("model/elites", str(sorted(self.world_model.elites.tolist())), exclude="tensorboard")

    def _real_batch(self, batch_size: int) -> ReplayBufferSamples:
        """
        :param batch_size: minibatch size
        :return: real transitions in environment units, float32, flat observations
        """
        assert self.replay_buffer is not None
        if self._samples_from_mirror:
            rows = self.real_data[self.real_data.random_rows(batch_size)]
            return ReplayBufferSamples(
                rows.observations,
                rows.actions,
                rows.next_observations,
                rows.terminated.unsqueeze(-1),
                rows.rewards.unsqueeze(-1),
            )
        batch = self.replay_buffer.sample(batch_size)
        return batch._replace(
            observations=batch.observations.float().flatten(1), next_observations=batch.next_observations.float().flatten(1)
        )

    def _policy_fn(self, observations: th.Tensor, step: int = 0) -> tuple[th.Tensor, th.Tensor]:
        """
        The current policy as imagination sees it.

        :param observations: raw, [B, O]
        :param step: imagined time, of no consequence for a stationary policy
        :return: actions in [-1, 1], [B, A], and their log-probabilities [B]
        """
        return self.actor.action_log_prob(self._view.observations(observations))

    # -- Divergence ---------------------------------------------------------------------------------------------------

    def _check_finite(self) -> None:
        """Stop on losses or parameters that are not finite, with the parameters of the last look; else remember these."""
        self._checked_at_update = self._n_updates
        diverged = sorted(name for name, mean in self.metrics.means().items() if not np.isfinite(mean))
        # The model is left out: a fit looks after itself
        state = {name: part for name, part in self.get_parameters().items() if not name.startswith("model_trainer")}
        del state["world_model"]
        finite = bool(th.stack([tensor.isfinite().all() for tensor in _tensors(state)]).all())
        if finite and not diverged:
            self._finite_parameters = deepcopy(state)
            return
        self._stop_diverged(", ".join(diverged) or "the parameters")

    def _stop_diverged(self, what: str) -> NoReturn:
        """
        :param what: did not stay finite
        :raises NonFiniteError: always, with the agent back at its last finite parameters
        """
        if self._finite_parameters:
            self.set_parameters(deepcopy(self._finite_parameters), exact_match=False, device=self.device)
        raise NonFiniteError(
            f"Losses and parameters must stay finite, but at update {self._n_updates} (env step {self.num_timesteps}) "
            f"{what} did not. The agent is back at its last finite parameters and can be saved. Lower `learning_rate`, "
            "`gradient_steps` or the horizon, or pass policy_kwargs={'critic_layer_norm': True}."
        )

    # -- Logging and saving -------------------------------------------------------------------------------------------

    def dump_logs(self) -> None:
        """Add the means of all updates since the last dump, and what was spent so far, to SB3's log."""
        means = self.metrics.means()
        if not np.isfinite(list(means.values())).all():
            self._check_finite()
        for name, mean in means.items():
            self.logger.record(f"train/{name}", mean)
        self.metrics.clear()
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("model/updates", self.model_updates)
        self.logger.record("model/imagined_transitions", self.imagined_transitions)
        for activity, seconds in self.stopwatch.seconds.items():
            self.logger.record(f"time/{activity}_seconds", seconds)
        super().dump_logs()

    def _excluded_save_params(self) -> list[str]:
        return [
            *super()._excluded_save_params(),
            "actor",
            "critic",
            "critic_target",
            "_averaged_parameters",
            "entropy_coef",
            "world_model",
            "model_trainer",
            "real_data",
            "metrics",
            "_captured_update",
            "_view",
            "_finite_parameters",
        ]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = [
            "policy",
            "actor.optimizer",
            "critic.optimizer",
            "entropy_coef",
            "world_model",
            "model_trainer.optimizer",
        ]
        if self.entropy_coef.optimizer is not None:
            state_dicts.append("entropy_coef.optimizer")
        return state_dicts, []


def _tensors(state: Any) -> Iterator[th.Tensor]:
    """
    :param state: state dicts, nested
    :return: every tensor of numbers in it
    """
    if isinstance(state, th.Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)
