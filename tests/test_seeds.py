import pytest
import torch

from hatemtl.seeds import derive, generator, seeded


def test_a_draw_depends_on_the_seed_and_its_name_only() -> None:
    first = torch.rand(4, generator=generator(0, "lora", 3))
    torch.rand(99)
    torch.rand(7, generator=generator(0, "head"))
    assert torch.equal(first, torch.rand(4, generator=generator(0, "lora", 3)))
    others = [generator(1, "lora", 3), generator(0, "lora", 4), generator(0, "lora"), generator(0, "lora3")]
    assert not any(torch.equal(first, torch.rand(4, generator=g)) for g in others)


def test_names_do_not_run_together() -> None:
    seeds = [derive(0, "a", "b"), derive(0, "ab"), derive(0, "b", "a"), derive(0, "a"), derive(0)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_derive_is_the_same_on_every_machine() -> None:
    assert derive(3, "head", "label") == 3032845117199530861


def test_a_generator_leaves_the_global_one_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(5, generator=generator(0, "x"))
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_gives_the_global_generator_back() -> None:
    before = torch.get_rng_state()
    with seeded(0, "x"):
        inside = torch.rand(5)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(inside, torch.rand(5, generator=generator(0, "x")))


def test_seeded_gives_it_back_after_an_error_too() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError), seeded(0, "x"):
        torch.rand(5)
        raise KeyError
    assert torch.equal(before, torch.get_rng_state())


def test_seeded_blocks_nest() -> None:
    with seeded(0, "outer"):
        first = torch.rand(2)
        with seeded(0, "inner"):
            torch.rand(3)
        second = torch.rand(2)
    assert torch.equal(torch.cat([first, second]), torch.rand(4, generator=generator(0, "outer")))
