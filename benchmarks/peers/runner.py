"""This project's command line as a user types it, `runner train ...`, called in this process for the stopwatch's sake.

The stopwatch hangs on torch's hooks, so the product's code is run as it is.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers.task import Task, read_task
from runner.cli import main


def command_line(task: Task) -> list[str]:
    """What stands after `runner`. A run that checks logs each step; a checkpoint is saved at the end of any run."""
    recipe, lora = task.recipe, task.recipe["lora"]
    return [
        "train",
        "model=chat",
        "llm=pretrained",
        f"llm.path={task.fixture}/model",
        "lora=default",
        f"lora.r={lora['r']}",
        f"lora.alpha={lora['alpha']}",
        f"lora.target_modules=[{','.join(lora['target_modules'])}]",
        f"lora.init={task.fixture}/adapter",
        "data=jsonl",
        f"data.path={task.fixture}/train.jsonl",
        "data.order=file",
        "precision=fp32",
        "cluster.device=cpu",
        "schedule=constant",
        "schedule.warmup_steps=0",
        f"optimizer.lr={recipe['learning_rate']}",
        f"train.clip_norm={recipe['clip_norm']}",
        f"train.batch_size={recipe['batch_size']}",
        f"train.max_steps={task.steps}",
        "train.eval_every=null",
        f"train.log_ids={'true' if task.check else 'false'}",
        "tracker=none",
        f"hydra.run.dir={task.work}/run",
    ]


def train(task: Task) -> None:
    code = main(command_line(task))
    if code:
        raise SystemExit(code)
    run = task.work / "run"
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open(encoding="utf-8")]
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    task.answer(losses, Path(summary["checkpoint"]))


if __name__ == "__main__":
    train(read_task("runner"))
