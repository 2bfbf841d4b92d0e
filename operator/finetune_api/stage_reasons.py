"""The reasons that a container gives for its own end (`Failure.reason`), what they mean, and the way out."""

from __future__ import annotations

_AGAIN = "none is needed: it is tried again"
_BASE = "use another base model"
_PREPARE = "start a new run"
_IMAGE = "use an image of the operator's version"

_OF_THE_SPEC: dict[str, tuple[str, str]] = {
    "AllLeaked": ("the baseline was trained on all held-out examples", "set evaluation.dataset, or baseline: Base"),
    "FormatNotUsable": ("model.task cannot learn from a source's format", "correct data.sources[].format"),
    "NoAnswers": ("a metric compares answers, and the examples have none", "use loss or perplexity"),
    "QuantisedModel": ("the base model's weights are quantised", "use the model that it was made from"),
    "UnsupportedModel": ("the base model cannot be read, trained or served", _BASE),
    "AdapterMismatch": (
        "the version's adapter, which method.parent: Keep goes on with, is of another kind than the job's, or for other"
        " classes",
        "use the values that the message names, or method.parent: Merge",
    ),
    "BadDeepSpeedConfig": ("DeepSpeed does not take what compute.configRef says", "correct it as the message says"),
    "BadMetric": ("evaluation.metrics asks for what cannot be judged", "correct them as the message says"),
    "BadUri": ("a URI is written wrongly", "correct it as the message says"),
    "ClaimNotMounted": ("a pvc:// URI names a claim that the pod does not have", "correct the URI"),
    "LabelsUnknown": ("the baseline's classes are not recorded", "set evaluation.baseline to Base"),
    "NoSuchModule": (
        "method.lora.targetModules names no layer of the base model, or one that shares its weights, or PEFT knows none"
        " for the method",
        "correct it, or leave it out; set method.type to LoRA",
    ),
    "NoSuchParameter": ("method.freeze names nothing that the base model has", "correct it"),
    "NotSupported": ("this version cannot do what the run asks for", "change the spec as the message says"),
    "NothingLearned": ("training changed no parameter", "raise training.learningRate, or the number of steps"),
    "NothingToTrain": ("method.freeze leaves no parameter to train", "freeze less"),
    "PackingNotIsolated": ("packed examples would see each other", "set training.packing to false"),
    "RankTooLarge": ("method.lora.rank is more than a layer has room for", "lower it as the message says"),
    "TokenizersDiffer": ("metrics count tokens, and the models' tokenizers differ", "judge the answers instead"),
    "UnsupportedMethod": ("the base model has what the method cannot adapt", "change it as the message says"),
    "LossNotFinite": (
        "the loss became NaN or infinite",
        "lower training.learningRate, set failurePolicy.onDivergence: RollBack, or look at the data",
    ),
    "ScoresNotFinite": ("a model's scores are no numbers", "evaluate in FP32, or lower training.learningRate"),
}
"""What was asked for, or what it makes of the same data: it comes out alike as long as the spec is the same."""
STAGE_REASONS: dict[str, tuple[str, str]] = {
    **_OF_THE_SPEC,
    # -- examples
    "BadFileName": ("the name of a file or object is no printable text, or no path", "rename the file"),
    "EmptyData": ("no example is left to learn from", "add rows to data.sources"),
    "EmptySplit": ("a part of data.split would have no example", "add examples, or raise its share"),
    "LongerThanContext": ("examples are longer than the base model reads", "shorten them, or lower training.maxLength"),
    "NothingToLearn": ("no training example has an answer within training.maxLength", "raise it, or shorten the rows"),
    "NothingToScore": ("no held-out example has an answer within training.maxLength", "raise it, or shorten the rows"),
    "OneLabel": ("all examples have one label", "add examples of another"),
    "PromptIsNoPrefix": ("a prompt's tokens are not those that its chat begins with", "split chats into single turns"),
    "StratumTooSmall": ("a label is not both learned and held out", "add examples of it, or remove it"),
    "TooManyBadRows": ("more rows than data.maxBadRows cannot be used", "correct the rows that are named, or raise it"),
    "TooManyLabels": ("there are more labels than a classifier may have", "join labels"),
    "TooManyTruncated": ("more than data.maxTruncatedFraction would be cut", "raise it, or training.maxLength"),
    "UnknownFileType": ("a file of data.sources is of no known type", "rename or convert it"),
    "MissingFile": ("data that state.json or a link names is not there", "copy all of it"),
    "UnreadableFile": (
        "a file of data.sources cannot be read, or is of another kind than its name says",
        "write it again, as UTF-8",
    ),
    # -- the base model
    "AmbiguousModel": ("model.uri holds several GGUF files", "name one of them"),
    "AnswerRewritten": ("the chat template does not write answers as they are", _BASE),
    "AnswersLongerThanContext": ("no room is left for a question", "lower evaluation.generation.maxNewTokens"),
    "BaseModelChanged": ("the base model is not what the run resolved", _PREPARE),
    "BaseModelTorn": ("the base model's copy is gone or damaged", _PREPARE),
    "GitLfsPointer": ("a file of the base model is a Git LFS pointer", "run git lfs pull where it was cloned"),
    "IncompleteModel": ("files or tensors of the base model are missing or damaged", "download it again"),
    "LicenceNotAllowed": ("model.licence.allow does not list the base model's licence", f"list it, or {_BASE}"),
    "LicenceUnknown": (
        "the base model declares no licence",
        "add `license:` to its README.md, or remove model.licence",
    ),
    "NoChatTemplate": ("the base model's tokenizer has no chat template", "use an instruction-tuned model"),
    "NoEndOfAnswer": ("no token ends an answer", "set the tokenizer's eos_token"),
    "NoGenerationPrompt": ("the chat template does not begin an answer", "use a template that does"),
    "ThinkingTemplate": ("the chat template cannot switch reasoning off", "use the model's variant without it"),
    "TokenizerNotSaved": ("the tokenizer is another one once it was saved", f"save it with transformers, or {_BASE}"),
    "TokenizerTooLarge": ("the tokenizer has tokens that the base model lacks", "use the tokenizer that belongs to it"),
    "TurnEndIsText": ("what ends an answer is no token", "add it to the tokenizer's special tokens"),
    "UnsafeWeights": ("the base model's weights are pickle files", "convert them to safetensors"),
    "UnsupportedChatTemplate": ("answers cannot be told from the rest of a chat", f"{_BASE}, or split the chats"),
    # -- what the run names
    "ClassesDiffer": (
        "the base model has a head for as many other classes as the data's",
        "name the same classes in the data, or begin with a model without that head",
    ),
    "InputForbidden": ("what a URI names may not be read", "name a Secret with credentials in secretRef"),
    "InputNotFound": ("what a URI names does not exist", "correct the URI, or put it there"),
    "DoesNotFit": ("training needs more memory than there is", "one of what the message says would fit"),
    "NothingToValidate": (
        "training.earlyStopping is to look at a validation split in which nothing is learned from",
        "raise data.split.validation or training.maxLength, or leave earlyStopping out",
    ),
    "OutsideAllowedRoots": ("a URI is outside the roots that the operator allows", "move what it names"),
    # -- the course of a run
    "ArtifactChanged": ("the model's files are not those that were recorded", "restore them"),
    "ArtifactTorn": ("the model's files are gone or damaged", "restore them"),
    "BadSnapshot": ("the prepared data cannot be read", _PREPARE),
    "BestCheckpointLost": ("the best checkpoint is gone", _PREPARE),
    "CannotWrite": ("the artifact store is full, or may not be written", "free space, or correct its permissions"),
    "CheckpointMismatch": ("a checkpoint does not fit the model", _PREPARE),
    "DataChanged": ("the prepared data are not those of this run", _PREPARE),
    "DataTorn": ("the prepared data are gone or damaged", _PREPARE),
    "HubUnavailable": ("the model hub does not answer", "set HF_ENDPOINT to a mirror, or use a folder"),
    "InternalError": ("nobody foresaw it", "see the pod's log"),
    "Leakage": ("an example is both learned and held out", _PREPARE),
    "StrategyNotActive": (
        "compute.strategy was set up and is not in force",
        "see the pod's log; another compute.strategy",
    ),
    "ModelNotVerified": ("the saved model does not answer as the trained one did", "see the pod's log"),
    "OutOfMemory": ("memory was not enough", "raise compute.resources, or lower training.microBatchSize or maxLength"),
    "PeerLost": ("another process of the run went away", _AGAIN),
    "ProcessKilled": ("a signal ended a training process", _AGAIN),
    "Stopped": ("the pod was stopped, and nothing was to be saved", _AGAIN),
    "StoppedAfterCheckpoint": ("the pod was stopped, and had saved first", _AGAIN),
    "StorageUnavailable": ("the object store does not answer", _AGAIN),
    # -- the image
    "BadArguments": ("the container's command is wrong", _IMAGE),
    "BadEnvironment": ("the pods of a gang were not told where to meet", _IMAGE),
    "BadRunFile": ("the image does not understand its orders", _IMAGE),
    "CannotListen": ("a server's port is taken", "choose another port, or end what listens there"),
    "LaunchFailed": ("the training processes ended before they began", "see the pod's log"),
    "OutsideRunFolder": ("a stage would write outside its run's folder", _IMAGE),
    "WarmUpFailed": ("a server's model did not answer its first request", "see the pod's log"),
}
"""By reason: its meaning, and the way out."""


def needs_another_run(reason: str) -> bool:
    """Whether another attempt of the same run would end with this reason again, whatever is mended outside of it."""
    return reason in _OF_THE_SPEC or STAGE_REASONS.get(reason, ("", ""))[1] == _PREPARE
