"""Scores of the dense model's weights, by one batch of a client's examples."""

import numpy as np

from mest_fed.client.capability import Capability
from mest_fed.data import Batches
from mest_fed.devices import Work
from mest_fed.rng import numpy_generator
from mest_fed.sparsity.state import SparseState
from mest_fed.task import Task
from mest_fed.task_scores import dense_task, scoring_plan
from mest_fed.training import choose_device
from mest_fed.training.saliency import SaliencyTrainer, saliency


def score_weights(
    task: Task, received: SparseState, who: Capability
) -> tuple[SparseState, int, Work]:
    """Return |w dL/dw| of all weights that may be sparse, the examples it took, and its work.

    Parameters
    ----------
    task : Task
        The run's, of the sparse model.
    received : SparseState
        The dense initial model.
    who : Capability
        The client. Its batch is drawn from (seed, 0, partition).

    Raises
    ------
    BudgetError
        If the client's budget does not hold a dense pass.
    """
    examples, _ = task.examples(who.partition)
    dense, plan = dense_task(task), scoring_plan(task, who.budget)
    model = dense.model.to(choose_device(task.config.training.device))
    dense.load(received)
    generator = numpy_generator(task.config.run.seed, 0, who.partition, "scores")
    batches = Batches(
        task.data.train, examples, task.config.training.batch_size, generator=generator
    )
    optimizer = dense.optimizer(0.0).build(model)
    trainer = SaliencyTrainer(
        model,
        optimizer,
        micro_batch=plan.micro_batch,
        memory=plan.memory,
        objective=task.objective,
        costs=lambda: dense.torch_work(plan.memory),
    )
    totals = trainer.fit([next(iter(batches))])
    with_scores = {
        layer: saliency(model, layer).to("cpu").numpy().astype(np.float32)
        for layer in task.spec.layouts
    }
    optimizer.close()
    model.zero_grad()
    work = trainer.work + task.round_work(totals.examples)
    return SparseState({}, {}, with_scores), totals.examples, work
