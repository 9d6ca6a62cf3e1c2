"""Lists what a run is made from besides its configuration: where that is another, so is the run."""

from collections.abc import Iterable

from hatemtl.batches.datamodule import DataModule
from hatemtl.command.request import Request
from hatemtl.errors import refusing
from hatemtl.saved_runs.claiming import Inputs
from hatemtl.saved_runs.saved_run import SavedRun


def sources_of(request: Request) -> list[SavedRun]:
    """Opens the saved runs that a run starts from, takes heads from, or asks as teachers."""
    with refusing():
        starts = request.method.starts_from()
    heads_from = request.heads_from()
    return [*starts, *([heads_from] if heads_from else []), *map(SavedRun, request.teachers)]


def inputs_of(sources: Iterable[SavedRun], rest: Inputs) -> Inputs:
    """Gives all that a run is made from. rest: what `inputs_to_read` gave, of this run or of one that reads the same."""
    return {"sources": {str(source.folder): source.digest() for source in sources}, **rest}


def inputs_to_read(request: Request, data: DataModule) -> Inputs:
    """Gives what most runs of a sweep share: the encoder's weights, fingerprints of posts, digests of heads' word lists."""
    lexicons = {task: lexicon.digest for task, lexicon in data.lexicons.items()}
    further = {"encoder_files": request.encoder.weights(), "lexicons": lexicons}
    if data.unlabelled is not None:
        further["unlabelled"] = {"corpus": data.corpora[data.unlabelled.corpus].fingerprint()}
    return {"data": data.fingerprints(), **{name: given for name, given in further.items() if given}}
