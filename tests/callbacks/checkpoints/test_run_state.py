"""State restored on resume that the runs of test_killed_runs.py do not cover."""

import pytest
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from trl.trainer.utils import RepeatSampler

from trl_perception.callbacks.checkpoints.run_state import skip_epochs


@pytest.mark.parametrize("processes", [1, 2])
def test_a_resumed_run_has_the_order_of_its_epoch(processes):
    """accelerate wraps the batch sampler of several processes: the sampler must be found in both."""

    def loader():
        sampler = RepeatSampler(range(12), 1, batch_size=2, seed=3)
        plain = DataLoader(range(12), batch_size=2, sampler=sampler)
        return prepare_data_loader(plain, num_processes=processes, process_index=0, put_on_device=False)

    never, again = loader(), loader()
    epochs = [[batch.tolist() for batch in never] for _ in range(3)]
    skip_epochs(again, 2)
    assert [batch.tolist() for batch in again] == epochs[2]
    assert epochs[0] != epochs[2] != epochs[1]
