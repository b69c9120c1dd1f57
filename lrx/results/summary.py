"""What a finished run says at its end: scores, time, memory, sizes."""

from __future__ import annotations

from lrx.results.record import RunRecord


def render(record: RunRecord) -> str:
    """A few lines of plain text; readable without torch and without a terminal."""
    lines = [f"{record.method} · {record.model} · {record.task} · scale {record.scale} · seed {record.seed}"
             f" · {record.status}"]  # fmt: skip
    if record.message:
        lines.append(f"  {record.message}")
    for name, part in record.parts.items():
        for split in part.reported:
            metrics = part.metrics.get(split, {})
            shown = "  ".join(f"{metric} {value:.4f}" for metric, value in metrics.items())
            chosen = f"best of step {part.best_step}" if part.best_step != part.steps else f"step {part.steps}"
            lines.append(f"  {name:<12} {split:<12} {shown}   (n={part.sizes.get(split, 0)}, {chosen})")
        lines += [f"  {name:<12} {key} {value:.4f}" for key, value in part.notes.items() if isinstance(value, float)]
        if part.selects_on_reported:
            lines.append(f"  {name:<12} note: the checkpoint was selected on a reported split (task.holdout=0)")
    cost = record.cost
    if cost:
        lines.append(
            f"  trained {cost.get('trainable_parameters', 0):,.0f} parameters"
            f" ({cost.get('adapter_parameters', 0):,.0f} outside the head),"
            f" optimizer state {_bytes(cost.get('optimizer_state_bytes', 0))},"
            f" peak memory {_bytes(cost.get('peak_memory_bytes', 0))}"
        )
        lines.append(
            f"  median step {1000 * cost.get('median_step_seconds', 0):.1f} ms,"
            f" {cost.get('examples_per_second', 0):.0f} examples/s, {cost.get('wall_seconds', 0):.0f} s in all"
        )
    return "\n".join(lines)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
