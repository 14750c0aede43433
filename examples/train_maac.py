"""Train MAAC on Pendulum-v1, save it, load it and watch what it learned: a few minutes on a laptop."""

from stable_baselines3.common.evaluation import evaluate_policy

from sb3_modelbased import MAAC

model = MAAC("MlpPolicy", "Pendulum-v1", learning_starts=500, verbose=1, seed=0)
model.learn(total_timesteps=4_000, log_interval=1)
model.save("maac_pendulum")

model = MAAC.load("maac_pendulum", env=model.get_env())
mean, std = evaluate_policy(model, model.get_env(), n_eval_episodes=10)
print(f"Return of 10 episodes: {mean:.0f} +- {std:.0f}")
