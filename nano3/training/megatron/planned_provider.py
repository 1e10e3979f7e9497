"""Megatron-Bridge's dataset section for a run in nano3's order.

Megatron-Bridge asks a `DatasetProvider` for the datasets of a run. This one makes the training samples as the plan
says, and leaves those of the validation to Megatron's builder. All other fields that Megatron-Bridge reads are those of
the recipe's GPTDatasetConfig, `gpt`; the section is saved as that one, too (`to_cfg_dict`).
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron.bridge.data.base import DataloaderConfig, DatasetBuildContext, DatasetProvider

from nano3.training.order.plan import OrderPlan
from nano3.training.order.streams import Streams
from nano3.utils.errors import UserError


@dataclass
class PlannedProvider(DatasetProvider):  # type: ignore[misc]
    """Provides the datasets of a run. `plan` is its OrderPlan as JSON."""

    gpt: Any = None
    plan: dict[str, Any] = field(default_factory=dict)
    folder: str = ""

    @classmethod
    def around(cls, gpt: Any, plan: OrderPlan, folder: Path) -> "PlannedProvider":
        """Return the provider with the loader settings of a GPTDatasetConfig.

        Args:
            gpt: The section of the recipe, with all settings.
            plan: The plan of the run.
            folder: The data folder.

        Raises:
            UserError: The recipe's dataset is of another kind.
        """
        from megatron.bridge.training.config import GPTDatasetConfig

        if type(gpt) is not GPTDatasetConfig:
            raise UserError(
                f"train.sample_order=nano3 needs a recipe with a GPTDatasetConfig; this one has a "
                f"{type(gpt).__name__}. Use train.sample_order=megatron."
            )
        loader = {f.name: getattr(gpt, f.name) for f in fields(DataloaderConfig)}
        return cls(**loader, gpt=gpt, plan=plan.to_json(), folder=str(folder))

    def __getattr__(self, name: str) -> Any:
        """Return a field of `gpt`; called if this object has none of this name."""
        if name == "gpt" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.gpt, name)

    def finalize(self) -> None:
        """Finalize both parts of the section."""
        super().finalize()
        self.gpt.finalize()

    def build_datasets(self, context: DatasetBuildContext) -> tuple[Any | None, Any | None, Any | None]:
        """Return the training samples of the plan, and Megatron's validation samples."""
        import copy

        from megatron.bridge.data.utils import pretrain_train_valid_test_datasets_provider

        from nano3.training.order.samples import PlannedDataset

        self.gpt.tokenizer = context.tokenizer or self.tokenizer
        self.gpt.token_dtype_code = self.token_dtype_code
        plan = OrderPlan.from_json(self.plan)
        train = PlannedDataset(plan, Streams(plan, Path(self.folder)), self.gpt)
        _, valid, test = self.gpt.blend_per_split
        # Megatron-Bridge reads this validation once through, and begins it again at most once more after the end.
        samples = [0, 2 * context.valid_samples, 2 * context.test_samples]
        config = copy.copy(self.gpt)
        config.blend_per_split = [None, valid, test]
        if valid is None and test is None:
            return train, None, None
        _, valid_samples, test_samples = pretrain_train_valid_test_datasets_provider(samples, config)
        return train, valid_samples, test_samples
