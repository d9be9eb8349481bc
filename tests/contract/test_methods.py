"""What every method must do. A new method is tested by adding its settings to SPECS, one line each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from akd.config import resolve
from akd.data import Batch
from akd.methods import Method, Shapes, TeacherViews, WithViews, create_method, hosts, views
from akd.models import Output, create_model
from akd.teacher import LiveTeacher

B, C, N = 12, 7, 3
STUDENT, TEACHER = (4, 6, 8, 12), (5, 6, 6, 10)  # channels of the stage maps of the two networks
SIZES = (8, 8, 4, 2)  # heights and widths of these maps
IMAGES = 200  # in the training file


@dataclass(frozen=True)
class Spec:
    """A method under test.

    Attributes:
        method: what stands under ``method:`` in an experiment file.
        minimal: terms that are 0, with zero gradient, when student and teacher agree.
        views: the teacher comes with view logits.
        draws: draws random numbers, which go by a sample's place in the batch.
        resting: parameters, by the start of their names, that the student's steps leave alone.
        train: settings under ``train:``.
    """

    method: Any
    minimal: tuple[str, ...] = ()
    views: bool = False
    draws: bool = False
    resting: tuple[str, ...] = ()
    train: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [self.method] if isinstance(self.method, str) else self.method.values()
        words = "-".join("-".join(map(str, p.values() if isinstance(p, dict) else [p])) for p in parts)
        return words + "-views" * self.views + "".join(f"-{k}" for k in self.train)


def angular(**settings: Any) -> dict[str, Any]:
    return {"host": {"name": "kd", "weight": 2.0}, "views": {"name": "angular_kd", **settings}}


def over_kd(name: str, **settings: Any) -> dict[str, Any]:
    return {"host": {"name": "kd", "weight": 2.0}, "views": {"name": name, **settings}}


SPECS = [
    Spec("none"),
    Spec("none", train={"label_smoothing": 0.1}),
    Spec("kd", minimal=("kd",)),
    Spec("kd", minimal=("kd",), train={"label_smoothing": 0.1}),
    Spec("kd", minimal=("kd",), views=True),
    Spec({"host": {"name": "kd", "temperature": 1.0}}, minimal=("kd",)),
    Spec({"host": {"name": "kd", "temperature": 20.0, "weight": 3.0, "ce_weight": 0.0}}, minimal=("kd",), views=True),
    Spec({"host": {"name": "kd", "standardise": True, "temperature": 2.0}}, minimal=("kd",), views=True),
    Spec("dkd", minimal=("target", "others")),
    Spec({"host": {"name": "dkd", "standardise": True, "ramp_epochs": 0}}, minimal=("target", "others"), views=True),
    Spec("dist", minimal=("classes", "samples")),
    Spec({"host": {"name": "dist", "temperature": 4.0}}, minimal=("classes", "samples"), views=True),
    Spec("mlkd", minimal=("instance", "batch", "classes"), views=True),
    Spec({"host": {"name": "mlkd", "standardise": True, "temperatures": [2.0]}}, minimal=("instance",)),
    Spec("skd", minimal=("kd", "relation")),
    Spec({"host": {"name": "skd", "ridge": 0.001}}, minimal=("kd",), views=True),
    Spec({"host": "kd", "extra": ["dist", "dkd"]}, minimal=("kd", "extra/dkd/others"), views=True),
    Spec({"host": "dkd", "normalise": True, "extra": ["kd"]}, minimal=("target", "extra/kd/kd"), views=True),
    Spec({"host": "kd", "views": "angular_kd", "extra": ["dist"], "normalise": True}, draws=True),
    Spec("angular_kd", draws=True),
    Spec("angular_kd", draws=True, train={"label_smoothing": 0.1}),
    Spec(angular(count=1), draws=True),
    Spec(angular(count=8, head="low_rank", head_rank=3, tau_angle=4.0, detach=False), draws=True),
    Spec(angular(head="projected", head_width=6, dropout_low=0.0, dropout_high=0.0, margin=0.5)),
    Spec(angular(as_released=True, head_init="across", detach=False), draws=True),
    Spec("amd", minimal=("amd",)),
    Spec({"host": {"name": "amd", "margin": 2.0, "scale": 8.0, "local_weight": 0.2, "stages": [1, -1]}}),
    Spec({"host": {"name": "crd", "negatives": 50, "width": 8}}, draws=True),
    Spec({"host": {"name": "crd", "form": "batch", "width": 8}}, views=True),
    Spec("fitnet"),
    Spec({"host": {"name": "fitnet", "stages": [0, -1]}}),
    Spec("at", minimal=("at",)),
    Spec("sp", minimal=("sp",)),
    Spec({"host": {"name": "sp", "stages": [1, -1]}}, minimal=("sp",)),
    Spec("rkd", minimal=("distance", "angle")),
    Spec("rkd", views=True),
    Spec("reviewkd"),
    Spec({"host": {"name": "reviewkd", "preact": False, "ramp_epochs": 0, "stages": [-1, 1]}}, views=True),
    Spec("vid"),
    Spec({"host": {"name": "vid", "stages": [1]}}),
    Spec("pkt", views=True),
    Spec("tekap", draws=True),
    Spec(over_kd("tekap", count=1, noise=0.5, normalise=True, noisy="both"), draws=True),
    Spec(over_kd("tekap", noisy="embedding"), minimal=("kd",), draws=True),
    Spec("mgd", resting=("views.encoder.", "views.decoder.")),
    Spec(over_kd("mgd", count=3, width_low=3, width_high=20, head_warmup_epochs=0)),
    Spec(
        {"host": "at", "extra": {"kd": {"weight": 1.0}}, "views": "mgd"}, resting=("views.encoder.", "views.decoder.")
    ),
    Spec(over_kd("mgd", target="native"), minimal=("kd",), resting=("views.encoder.", "views.decoder.")),
]


def build(spec: Spec, seed: int = 0, same_widths: bool = False) -> Method:
    experiment = resolve({"method": spec.method, "train": spec.train})
    teacher = STUDENT if same_widths else TEACHER
    shapes = Shapes(C, STUDENT[-1], teacher[-1], STUDENT, teacher, IMAGES)
    return create_method(experiment.method, shapes, label_smoothing=experiment.train.label_smoothing, seed=seed)


def make_output(seed: int, channels: tuple[int, ...], dtype: torch.dtype = torch.float32, scale: float = 2.0) -> Output:
    draw = torch.Generator().manual_seed(seed)
    before = tuple(torch.randn(B, c, n, n, generator=draw).to(dtype) for c, n in zip(channels, SIZES, strict=True))
    after = tuple(F.relu(b) for b in before)
    logits = (scale * torch.randn(B, C, generator=draw)).to(dtype)
    return Output(logits, after[-1].mean((2, 3)), after, before)


def with_views(spec: Spec, teacher: Output, seed: int = 7) -> Output:
    """The teacher with N unlike views where the spec asks for them; weights that do not sum to 1 give a mass."""
    if not spec.views:
        return teacher
    noise = torch.randn(B, N, C, generator=torch.Generator().manual_seed(seed)).to(teacher.logits.dtype)
    embeddings = teacher.embedding[:, None].expand(-1, N, -1)
    weights = torch.tensor([1.0, 0.5, 0.25, 0.25])
    return teacher._replace(
        view_logits=teacher.logits[:, None] + noise, view_embeddings=embeddings, view_weights=weights
    )


def make_batch(rows: slice = slice(0, B), **changes: Any) -> Batch:
    """Rows of one fixed global batch; the generator is seeded afresh, so that equal draws are compared."""
    draw = torch.Generator().manual_seed(3)
    target = torch.randint(C, (B,), generator=draw)
    whole = {
        "index": torch.arange(B) + 100,
        "target": target,
        "target2": target,
        "lam": torch.ones(B),
        "view": torch.zeros(B, dtype=torch.long),
    } | changes
    share = {k: v[rows] for k, v in whole.items()}
    return Batch(**share, epoch=1, step=0, generator=torch.Generator().manual_seed(5), offset=rows.start or 0, total=B)


def map_output(output: Output, change: Any) -> Output:
    """``change`` applied to every tensor with a batch axis."""

    def each(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(change(v) for v in value)
        return None if value is None else change(value)

    return Output(*(v if k == "view_weights" else each(v) for k, v in output._asdict().items()))


def leaves(output: Output) -> Output:
    return map_output(output, lambda t: t.detach().clone().requires_grad_())


def total(method: Method, terms: dict[str, Tensor]) -> Tensor:
    """The terms that the configuration counts, as the loop weighs them."""
    return torch.stack([method.weights()[name] * term for name, term in terms.items()]).sum()


@pytest.mark.parametrize("spec", SPECS, ids=str)
class TestMethod:
    """The contract. Terms are scalars, each a mean over the batch."""

    def pair(self, spec: Spec, dtype: torch.dtype = torch.float32, scale: float = 2.0) -> tuple[Output, Output]:
        student = make_output(1, STUDENT, dtype, scale)
        return student, with_views(spec, make_output(2, TEACHER, dtype, scale))

    def test_terms_are_finite_scalars_and_have_a_weight_each(self, spec: Spec) -> None:
        method = build(spec)
        terms = method(*self.pair(spec), make_batch())
        assert terms
        heads = method.warmup(self.pair(spec)[1], make_batch()) if method.warmup_epochs else {}
        # In the order of the weights, which also name what only head epochs have.
        assert list(terms) == [name for name in method.weights() if name in terms or name not in heads]
        assert heads.keys() <= method.weights().keys()
        assert all(term.shape == () and term.isfinite() for term in terms.values())

    def test_terms_of_hosts_do_not_fall_below_0_unless_they_say_so(self, spec: Spec) -> None:
        """Far down their gradient, in the student's outputs and the method's own parameters."""
        method = build(spec)
        student, teacher = self.pair(spec)
        maps = tuple(m.clone().requires_grad_() for m in student.maps)
        logits, embedding = (x.clone().requires_grad_() for x in (student.logits, student.embedding))
        student = Output(logits, embedding, maps)
        optimizer = torch.optim.Adam([logits, embedding, *maps, *method.parameters()], lr=0.3)
        assert method.signed() <= method.weights().keys()
        for _ in range(80):
            terms = {k: t for k, t in method(student, teacher, make_batch()).items() if not k.startswith("views/")}
            torch.stack([t for k, t in terms.items() if k != "ce" or len(terms) == 1]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all((t > -1e-6) != (k in method.signed()) for k, t in terms.items()), terms

    def test_minimal_when_student_equals_teacher(self, spec: Spec) -> None:
        method = build(spec, same_widths=True)
        teacher = make_output(2, STUDENT)
        if spec.views:
            teacher = with_views(spec, teacher)
            teacher = teacher._replace(view_logits=teacher.logits[:, None].expand(-1, N, -1))
        student = leaves(make_output(2, STUDENT))
        apart = method(leaves(make_output(1, STUDENT)), teacher, make_batch())
        terms = method(student, teacher, make_batch())
        for name in spec.minimal:
            assert abs(terms[name].item()) < 1e-5
            assert apart[name].item() > 1e-3
            wrt = [student.logits, student.embedding, *student.maps, *student.maps_preact]
            grads = torch.autograd.grad(terms[name], wrt, allow_unused=True, retain_graph=True)
            assert all(g is None or float(g.abs().max()) < 1e-5 for g in grads)

    def test_gradients_reach_logits_and_own_parameters(self, spec: Spec) -> None:
        method = build(spec)
        student, teacher = self.pair(spec)
        student = leaves(student)
        total(method, method(student, teacher, make_batch())).backward()
        assert float(student.logits.grad.abs().sum()) > 0
        for name, parameter in method.named_parameters():
            if name.startswith(spec.resting):
                assert parameter.grad is None, name  # and not 0, which weight decay would act on
                continue
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name

    def test_no_gradient_reaches_the_teacher(self, spec: Spec) -> None:
        torch.manual_seed(0)
        nets = [create_model(name, C, in_channels=1) for name in ("resnet8", "wrn_16_1")]
        source = LiveTeacher(nets[1], build(spec).needs)
        images = torch.rand(B, 1, 8, 8)
        method = create_method(
            resolve({"method": spec.method}).method, Shapes(C, 64, 64, (16, 16, 32, 64), (16, 16, 32, 64), IMAGES)
        )
        before = {k: v.clone() for k, v in nets[1].state_dict().items()}
        teacher = with_views(spec, source(images, make_batch()))
        total(method, method(nets[0](images, preact=True), teacher, make_batch())).backward()
        assert any(p.grad is not None for p in nets[0].parameters())
        assert all(p.grad is None and not p.requires_grad for p in nets[1].parameters())
        assert all(torch.equal(v, before[k]) for k, v in nets[1].state_dict().items())

    def test_batch_order_does_not_matter(self, spec: Spec) -> None:
        method = build(spec).double()
        if spec.draws:
            method.eval()
        student, teacher = self.pair(spec, torch.float64)
        lam = torch.linspace(0, 1, B)
        batch = make_batch(lam=lam, target2=make_batch().target.roll(1), view=(torch.arange(B) % 3 == 0).long())
        order = torch.randperm(B, generator=torch.Generator().manual_seed(11))
        turned = batch._replace(**{k: getattr(batch, k)[order] for k in ("index", "target", "target2", "lam", "view")})
        turned = turned._replace(generator=torch.Generator().manual_seed(5))
        one = method(student, teacher, batch)
        two = method(*(map_output(o, lambda t: t[order]) for o in (student, teacher)), turned)
        assert one.keys() == two.keys()
        for name in one:
            assert one[name].item() == pytest.approx(two[name].item(), rel=1e-12), name

    @pytest.mark.parametrize("scale", [2.0, 1000.0])
    def test_finite_in_bfloat16(self, spec: Spec, scale: float) -> None:
        method = build(spec).bfloat16()
        # Beyond +-80 the exponential of a difference leaves bfloat16's and float32's range.
        student, teacher = (
            map_output(o, lambda t: t.clamp(-80, 80)) for o in self.pair(spec, torch.bfloat16, scale=scale)
        )
        student = leaves(student)
        terms = method(student, teacher, make_batch(lam=torch.ones(B, dtype=torch.bfloat16)))
        assert all(term.isfinite() for term in terms.values())
        total(method, terms).backward()
        assert student.logits.grad.isfinite().all()
        assert all(p.grad.isfinite().all() for n, p in method.named_parameters() if not n.startswith(spec.resting))

    def test_bfloat16_is_close_to_float32(self, spec: Spec) -> None:
        rounded = tuple(map_output(o, lambda t: t.bfloat16().float()) for o in self.pair(spec))
        wide = build(spec)(*rounded, make_batch())
        low = build(spec).bfloat16()(*(map_output(o, lambda t: t.bfloat16()) for o in rounded), make_batch())
        for name in wide:
            assert low[name].item() == pytest.approx(wide[name].item(), rel=2e-2, abs=1e-3), name

    def test_state_dict_round_trip(self, spec: Spec) -> None:
        one, two = build(spec, seed=0), build(spec, seed=1)
        two.load_state_dict(one.state_dict())
        a, b = (m(*self.pair(spec), make_batch()) for m in (one, two))
        assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}

    def test_built_without_weights_it_has_the_same_shapes(self, spec: Spec) -> None:
        """As the forms of a space are built before a search; see :mod:`akd.forms`."""
        with torch.device("meta"):
            empty = build(spec)
        assert all(t.is_meta for t in empty.state_dict().values())
        assert {k: v.shape for k, v in empty.state_dict().items()} == {
            k: v.shape for k, v in build(spec).state_dict().items()
        }
        assert empty.weights() == build(spec).weights()

    def test_seed_decides_the_initial_parameters_and_leaves_the_global_generator_alone(self, spec: Spec) -> None:
        before = torch.get_rng_state()
        one, two = build(spec, seed=4), build(spec, seed=4)
        assert torch.equal(torch.get_rng_state(), before)
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
            assert torch.equal(a, b)

    def test_draws_nothing_from_the_global_generator(self, spec: Spec) -> None:
        before = torch.get_rng_state()
        build(spec)(*self.pair(spec), make_batch())
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_step_reads_nothing_back_from_the_device(self, spec: Spec) -> None:
        """On a GPU each such read waits for everything that is queued."""
        method, (student, teacher) = build(spec), self.pair(spec)
        student, batch = leaves(student), make_batch()
        with NoReads():
            total(method, method(student, teacher, batch)).backward()

    def test_maps_may_lie_channels_last(self, spec: Spec) -> None:
        def turned(output: Output) -> Output:
            return map_output(output, lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t)

        pair, found = self.pair(spec, torch.float64), []
        for student, teacher in (pair, tuple(map(turned, pair))):
            method = build(spec).double()
            student = map_output(student, lambda t: t.detach().requires_grad_())
            terms = method(student, teacher, make_batch())
            total(method, terms).backward()
            grads = [t.grad for t in (student.logits, student.embedding, *student.maps, *student.maps_preact)]
            found.append(([*terms.values()], [g for g in grads if g is not None]))
        for one, two in zip(*found, strict=True):
            assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(one, two, strict=True))

    def test_one_piece_or_two_unequal_parts(self, spec: Spec) -> None:
        """Workers with unequal shares agree with one worker: mean weighted by samples, or gathered first.

        Statistics of batch normalisation are taken over all workers, which needs workers (tests/test_ddp.py): here
        they are given.
        """
        method, alone = build(spec).double(), build(spec).double()  # a method may remember what it has seen
        if not method.relational:
            for module in (*method.modules(), *alone.modules()):
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        outputs = self.pair(spec, torch.float64)
        whole = alone(*outputs, make_batch())
        parts = [slice(0, 5), slice(5, B)]
        pieces = [tuple(map_output(o, lambda t, rows=rows: t[rows]) for o in outputs) for rows in parts]
        if method.relational:
            got = method(*(gather(*o) for o in zip(*pieces, strict=True)), make_batch())
        else:
            terms = [method(*piece, make_batch(rows)) for piece, rows in zip(pieces, parts, strict=True)]
            sizes = [rows.stop - rows.start for rows in parts]
            got = {k: sum(n * t[k] for n, t in zip(sizes, terms, strict=True)) / B for k in whole}
        for name in whole:
            assert got[name].item() == pytest.approx(whole[name].item(), rel=1e-12), name

    def test_strong_view_rows_carry_no_hard_label(self, spec: Spec) -> None:
        view = (torch.arange(B) < 4).long()
        one = make_batch(view=view)
        wrong = torch.where(view == 1, (one.target + 1) % C, one.target)
        two = make_batch(view=view, target=wrong, target2=wrong)
        a, b = build(spec)(*self.pair(spec), one), build(spec)(*self.pair(spec), two)
        assert {k: v.item() for k, v in a.items()} == {k: v.item() for k, v in b.items()}
        method = build(spec)
        nothing = method(*self.pair(spec), make_batch(view=torch.ones(B, dtype=torch.long)))
        assert all(term.isfinite() for term in nothing.values())
        if "ce" in nothing:
            assert nothing["ce"].item() == 0
            standard = method(*self.pair(spec), make_batch())
            assert a["ce"].item() != standard["ce"].item()

    def test_hard_labels_are_mixed_by_lam(self, spec: Spec) -> None:
        method = build(spec).double()
        outputs = self.pair(spec, torch.float64)
        first, lam = make_batch().target, torch.linspace(0, 1, B, dtype=torch.float64)
        second = (first + 2) % C
        mixed = method(*outputs, make_batch(target2=second, lam=lam))
        assert all(term.isfinite() for term in mixed.values())
        if "ce" not in mixed:
            return
        want = 0.0
        for i in range(B):
            only = (torch.arange(B) != i).long()  # every other row is strong, so the mean is this row's label alone
            one, two = (
                method(*outputs, make_batch(view=only, target=t, target2=t))["ce"].item() for t in (first, second)
            )
            want += (float(lam[i]) * one + (1 - float(lam[i])) * two) / B
        assert mixed["ce"].item() == pytest.approx(want, rel=1e-12)

    def test_needs_a_teacher_only_if_it_says_so(self, spec: Spec) -> None:
        method, (student, teacher) = build(spec), self.pair(spec)
        if method.needs:
            with pytest.raises(ValueError, match="teacher"):
                method(student, None, make_batch())
        else:
            alone, beside = method(student, None, make_batch()), method(student, teacher, make_batch())
            assert {k: v.item() for k, v in alone.items()} == {k: v.item() for k, v in beside.items()}
            assert method.soft_weight() == 0


class NoReads(TorchDispatchMode):
    """Refuses operations whose result, or its shape, the host has to wait for."""

    READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.READS, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert all(i is None or i.dtype == torch.long for i in args[1]), "an index of truth values"
        return func(*args, **(kwargs or {}))


def test_reads_are_noticed() -> None:
    x = torch.arange(3.0, requires_grad=True)
    for read in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x.sum() > 0), lambda: (x > 1).nonzero()):
        with pytest.raises(AssertionError), NoReads():
            read()


def gather(*parts: Output) -> Output:
    """Outputs of several workers joined along the batch, as ``World.gather`` would."""
    fields = zip(*(p._asdict().items() for p in parts), strict=True)

    def join(name: str, values: list[Any]) -> Any:
        if values[0] is None or name == "view_weights":
            return values[0]
        if isinstance(values[0], tuple):
            return tuple(torch.cat(v) for v in zip(*values, strict=True))
        return torch.cat(values)

    return Output(**{pairs[0][0]: join(pairs[0][0], [v for _, v in pairs]) for pairs in fields})


@pytest.mark.parametrize("name", hosts.names())
def test_registered_with_a_config_whose_defaults_build(name: str) -> None:
    config = hosts.info(name)["config"]
    assert dataclasses.is_dataclass(config)
    assert config().name == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().name = "other"
    assert hosts.info(name)["summary"]
    method = create_method(resolve({"method": name}).method, Shapes(C, 12, 12, STUDENT, STUDENT, IMAGES))
    assert isinstance(method, Method)


@pytest.mark.parametrize("name", views.names())
def test_views_are_registered_with_a_config_whose_defaults_build(name: str) -> None:
    config = views.info(name)["config"]
    assert config().name == name
    assert views.info(name)["summary"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().name = "other"
    method = create_method(resolve({"method": name}).method, Shapes(C, 12, 12, STUDENT, STUDENT, IMAGES))
    assert isinstance(method, WithViews)
    assert isinstance(method.views, TeacherViews)


def test_every_registered_method_is_under_contract() -> None:
    listed = [resolve({"method": spec.method}).method for spec in SPECS]
    assert {m.host_name for m in listed if not m.extra} == set(hosts.names())
    assert {m.views_name for m in listed} - {None} == set(views.names())
