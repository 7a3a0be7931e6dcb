import pytest
import torch

from weft.data.batches import Batches


def tensors(count):
    return torch.arange(count, dtype=torch.uint8).reshape(count, 1, 1, 1), torch.arange(count)


def served(loader):
    return [labels.tolist() for _, labels in loader]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
@pytest.mark.parametrize(("count", "world_size"), [(c, w) for c in (1, 2, 7, 12, 13) for w in (1, 2, 3) if c >= w])
def test_evaluation_serves_every_sample_once(count, batch_size, world_size):
    shares = [served(Batches(*tensors(count), batch_size, rank=r, world_size=world_size)) for r in range(world_size)]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(count))
    assert len({len(share) for share in shares}) == 1, "processes with different numbers of batches would hang"
    assert all(batch for share in shares for batch in share)
    assert all(len(batch) <= batch_size for batch in shares[0]) or world_size > 1


def test_evaluation_keeps_the_order():
    assert [i for batch in served(Batches(*tensors(10), 4)) for i in batch] == list(range(10))


def test_images_stay_with_their_labels():
    for images, labels in Batches(*tensors(20), 6, seed=1):
        assert images.flatten().tolist() == labels.tolist()


@pytest.mark.parametrize("world_size", [1, 2])
def test_training_serves_full_batches_without_repetition(world_size):
    loaders = [Batches(*tensors(23), 4, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    shares = [served(loader) for loader in loaders]
    assert (
        [len(share) for share in shares] == [len(loader) for loader in loaders] == [23 // world_size // 4] * world_size
    )
    assert all(len(batch) == 4 for share in shares for batch in share)
    indices = [i for share in shares for batch in share for i in batch]
    assert len(set(indices)) == len(indices)


def test_training_set_smaller_than_a_batch_is_one_batch():
    assert [sorted(batch) for batch in served(Batches(*tensors(3), 8, seed=0))] == [[0, 1, 2]]


def test_order_depends_on_seed_and_epoch_and_nothing_else():
    def order(seed, epoch):
        return served(Batches(*tensors(40), 8, seed=seed, epoch=lambda: epoch))

    first = order(3, 1)
    before = torch.get_rng_state()
    assert order(3, 1) == first
    assert torch.equal(torch.get_rng_state(), before), "the order must leave the global random state alone"
    assert len({str(order(s, e)) for s, e in [(3, 1), (3, 2), (4, 1), (2, 2), (4, 0)]}) == 5


def test_without_a_trainer_every_pass_has_another_order():
    loader = Batches(*tensors(40), 8, seed=0)
    assert served(loader) != served(loader)


def interrupted(batches, epoch=2):
    """A loader's state after some batches of an epoch."""
    loader = Batches(*tensors(40), 8, seed=0, epoch=lambda: epoch)
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    return loader.state_dict()


def test_resuming_in_the_middle_serves_the_rest():
    whole = served(Batches(*tensors(40), 8, seed=0, epoch=lambda: 2))
    resumed = Batches(*tensors(40), 8, seed=0, epoch=lambda: 2)
    resumed.load_state_dict(interrupted(3))
    assert served(resumed) == whole[3:]
    assert served(resumed) == whole, "only the first pass is shortened"


def test_resuming_at_the_start_of_an_epoch_serves_all_of_it():
    resumed = Batches(*tensors(40), 8, seed=0, epoch=lambda: 3)
    resumed.load_state_dict(interrupted(5))
    assert served(resumed) == served(Batches(*tensors(40), 8, seed=0, epoch=lambda: 3))


def test_resuming_works_without_a_trainer():
    loader = Batches(*tensors(40), 8, seed=0)
    served(loader)
    iterator = iter(loader)
    head = [next(iterator)[1].tolist() for _ in range(2)]
    resumed = Batches(*tensors(40), 8, seed=0)
    resumed.load_state_dict(loader.state_dict())
    assert head + served(resumed) == served(Batches(*tensors(40), 8, seed=0, epoch=lambda: 1))
    assert served(resumed) == served(Batches(*tensors(40), 8, seed=0, epoch=lambda: 2))


def test_passes_serve_every_sample_that_often_each_time_in_another_order():
    x, y = torch.arange(10).reshape(10, 1, 1, 1), torch.arange(10)
    loader = Batches(x, y, batch_size=5, seed=1, passes=3)
    assert len(loader) == 6
    served = torch.cat([labels for _, labels in loader]).reshape(3, 10)
    assert (served.sort(1).values == torch.arange(10)).all()
    assert len({tuple(row.tolist()) for row in served}) == 3
    once = Batches(x, y, batch_size=5, seed=1)
    again = torch.cat([labels for _ in range(3) for _, labels in once]).reshape(3, 10)
    assert torch.equal(served, again), "an epoch of three passes is three epochs of one"


def test_a_resumed_loader_goes_on_within_a_later_pass():
    x, y = torch.arange(10).reshape(10, 1, 1, 1), torch.arange(10)
    whole = [labels.tolist() for _, labels in Batches(x, y, batch_size=5, seed=1, passes=3)]
    loader = Batches(x, y, batch_size=5, seed=1, passes=3)
    loader.load_state_dict({"epoch": 0, "served": 3})
    assert [labels.tolist() for _, labels in loader] == whole[3:]
