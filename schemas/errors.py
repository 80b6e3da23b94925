"""One exception per thing a caller can act on; every message says what was found, what was expected, what to change."""

from __future__ import annotations


class MiclipError(Exception):
    """Base of every error that is meant to be read by a person; `exit_code` is what the command line returns."""

    exit_code = 1
    stages: tuple[str, ...] = ()
    """Of several stages that ran together, those that it concerns, while the others can be had without them; all if empty."""


# -- the spec or the command is wrong (exit 2): nothing was scheduled


class UsageError(MiclipError):
    """The request cannot be carried out as written; change the spec or the command."""

    exit_code = 2


class BadSpec(UsageError):
    """The spec is not valid; the message carries file, line, field, found, expected and the nearest name."""


class BadRef(UsageError):
    """A model, image set, concept or stage reference does not parse or names nothing."""


class BadSite(UsageError):
    """A site does not parse."""


class UnknownModel(UsageError):
    """No such architecture, checkpoint or local folder."""


class ReadsNoImages(UsageError):
    """The model is a generator: it draws images, and no stage can give it any to read."""


class NoGenerator(UsageError):
    """The model reads images and draws none, where one that draws them is needed."""


class NoLanguageModel(UsageError):
    """The model reads images but writes no text, where a vision-language model is needed."""


class NotTheTower(UsageError):
    """Another vision tower than the one that features were found in reads images for the language model."""


class UnknownSite(UsageError):
    """The site, selector or block does not exist in this model."""


class UnknownTable(UsageError):
    """No published table of that name in the chosen scope."""


class OlderPart(UsageError):
    """A part was written before its table had a column that is asked for, and this column may not be null."""


class UnknownRun(UsageError):
    """No run of that name in the store."""


class EmptyImageSet(UsageError):
    """The image set holds no file that could be an image."""


class TooFewImages(UsageError):
    """The image set is too small for what is asked of it, such as a block to hold out beside one to train on."""


class NotInspected(UsageError):
    """The plan needs facts (of a model or an image set) that no stage has published yet."""


class Infeasible(UsageError):
    """The cluster can never give what the spec asks for."""


class BadGrid(UsageError):
    """Maps that cannot be compared position by position: a grid of one position, or a side that is no positive number."""


class UnsafeName(UsageError):
    """A name taken from data or a spec would leave the store or cannot be a key."""


class EditNotRead(UsageError):
    """Steering at a block whose output the language model does not read; take an earlier one."""


class UnsafeCheckpoint(UsageError):
    """A checkpoint would run code when loaded; convert it to safetensors."""


class RemoteCodeRefused(UsageError):
    """The checkpoint wants to run its own Python; which is never done."""


class UnsupportedSae(UsageError):
    """An SAE of a kind that is not read, or that the wanted format cannot hold; the message says what to do instead."""


class MissingPackage(UsageError):
    """An optional package is needed; the message names the extra to install."""


# -- the cluster or the store cannot be reached (exit 3)


class Unreachable(MiclipError):
    """Base: something outside the job is away; the same command can be run again later."""

    exit_code = 3


class StoreUnreachable(Unreachable):
    """The store did not answer within its budget."""


class StoreDenied(Unreachable):
    """The store answered that these credentials may not do this, or found none."""


class StoreMissing(Unreachable):
    """The bucket or root folder of the store does not exist."""


class LeaseHeld(Unreachable):
    """Somebody else holds the lease and shows life; wait until they are done."""


class LeaseLost(Unreachable):
    """Another process took this lease, or its beats could not be written in time; what needs it must stop."""


class ClusterUnreachable(Unreachable):
    """Ray's head or control store is gone or was never there."""


# -- the work failed (exit 1)


class WorkFailed(MiclipError):
    """Some shards or stages failed; finished work is kept and published stages stand."""


class StoreFull(WorkFailed):
    """The disk under the store or a size limit refused the bytes; the message says where and how many were needed."""


class KeyMissing(MiclipError):
    """The store has no object under this key."""


class DamagedPart(WorkFailed):
    """A published part is missing or its bytes differ from its marker."""


class TableMismatch(WorkFailed):
    """A worker produced rows that do not fit the declared table; a bug of the worker, not of the user."""


class WeightsMissing(WorkFailed):
    """A checkpoint was asked for and at least one key did not load, or the weights changed since inspection."""


class ActivationMismatch(WorkFailed):
    """The checkpoint was trained with another activation function than the built model has (QuickGELU)."""


class GeometryMismatch(WorkFailed):
    """The input size or patch grid does not fit the model."""


class TokenOrderUnknown(WorkFailed):
    """Tokens may be dropped or permuted (MAE masking, patch dropout), so positions mean nothing."""


class NotInEval(WorkFailed):
    """The model is in training mode; batch norm and dropout would change the result."""


class NonFiniteActivation(WorkFailed):
    """A tapped value is NaN or infinite; the message names site and image ids."""


class UnsupportedBlock(WorkFailed):
    """This block type has no exact rule for what was asked (gated, inner-norm or post-norm head split)."""


class HookNeverFired(WorkFailed):
    """A requested site produced nothing in a forward, or fired another number of times than declared."""


class BadSae(WorkFailed):
    """The weights of a sparse autoencoder cannot be used: keys, shapes, values or a missing threshold."""


class ThresholdUnset(BadSae):
    """This autoencoder fires above a threshold that its training never measured; train it for more steps."""


class BadTokens(WorkFailed):
    """Tokens that no autoencoder can be trained or run on: of another width, not finite, or all alike."""


class BadLabels(WorkFailed):
    """Images are not labelled with any of the classes that a spec gives."""


class TooFewTokens(WorkFailed):
    """There are not enough tokens for one batch, or none that are held out."""


class BadAlignment(WorkFailed):
    """A neuron encoder cannot be trained on these inputs, or cannot be used: widths, labels, values or a damaged file."""


class BadUnits(WorkFailed):
    """Lists of units that cannot be edited: a unit that the site or SAE does not have, one twice, or lists of other classes."""


class BadMaps(WorkFailed):
    """Maps that cannot be compared: no unit varies, too few values, or no image that both models can use."""


class BadPrompt(WorkFailed):
    """A question that cannot be put to a vision-language model: no chat template, or other places for images than it shows."""


class NoAlpha(WorkFailed):
    """No strength of steering gave texts that could be scored, so that none can be chosen."""


class NoTruth(WorkFailed):
    """Nothing says well enough what units stand for, so no description of them can be judged."""


class ImagesShared(WorkFailed):
    """Explanations would be scored on images that they were made from."""


class NothingToScore(WorkFailed):
    """No feature is left whose explanations can be compared: none has a row of every method, or all chose alphas."""


class GangLost(WorkFailed, ConnectionError):
    """Another member of this gang is gone or does not answer; all start again from the last kept state."""


class SaeCollapsed(WorkFailed):
    """No latent fires any more; the weights would reconstruct nothing. Lower the rate or the sparsity penalty."""


class SaeDiverged(WorkFailed):
    """The loss is no finite number any more; lower the rate."""


class InversionDiverged(WorkFailed):
    """The loss of a latent that is sought is no finite number any more; lower the rate."""


class NothingToGuide(WorkFailed):
    """Mining found nothing that could guide an inversion: no best buddies above chance, or no statistics of them."""


class ImageChanged(WorkFailed):
    """The bytes of an image differ from its index, or the file is gone; index the image set again."""


class ImageUndecodable(MiclipError):
    """These bytes are not an image we accept; `reason` is the word stored in `bad_inputs`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


class ModelUnreachable(WorkFailed):
    """The place that serves a checkpoint is away or refuses for now; this model waits, the others go on."""


class InputUnreadable(WorkFailed):
    """A file of the user could not be read for another reason than that it is gone; the shard can be tried again."""


class OutOfMemory(WorkFailed):
    """The device has too little memory for this batch; lower batch_size or give the worker more of the device."""


class Interrupted(MiclipError):
    """Stopped on request; what was finished is kept and the same command resumes."""

    exit_code = 130


class Terminated(Interrupted):
    """Stopped by SIGTERM, as a machine that is taken back tells it; what was finished is kept and the same command resumes."""

    exit_code = 143


class Cancelled(Interrupted):
    """Stopped because somebody cancelled the run, from wherever they were; what was finished is kept."""
