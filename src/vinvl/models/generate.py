"""The way in: captions for a batch of images."""

from collections.abc import Sequence

import torch

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.constrained import Constraint, constrained_beam_search, constraint_machine, refuse_unmeetable
from vinvl.models.decoding import CaptionContext, DecodingOptions, GeneratedCaptions, WordStepper
from vinvl.models.search import CANDIDATES_PER_BEAM, beam_search, decode_stepwise
from vinvl.run.errors import UserError


def generate_captions(
    model: VinVLForCaptioning,
    context: CaptionContext,
    options: DecodingOptions,
    *,
    special: SpecialTokens,
    constraints: Sequence[Sequence[Constraint]] | None = None,
    generator: torch.Generator | None = None,
) -> GeneratedCaptions:
    """Write captions as `options` say; constrained beam search where constraints are given.

    The result is the same whatever else is in the batch (samples excepted: they share one generator). The model
    is used as it is: call `model.eval()` for captions without dropout. In training mode the context's dropout is drawn
    once per call. Sampling and greedy decoding are differentiable; the searches are not.

    Args:
        context: tags and regions of B images; tag positions start at max(40, max_length) in published models.
        constraints: for each image the constraints that its caption should meet; may be empty for some.
        generator: draws the samples; torch's own if not given. It must be on the model's device.

    Raises:
        UserError: options that do not fit the model, the vocabulary or the constraints.
    """
    _check(model, options)
    if constraints is not None:
        _check_constraints(context, constraints, options, special, model.config.vocab_size)
        machines = [constraint_machine(given) for given in constraints]
        return constrained_beam_search(model, context, machines, options, special)
    if options.num_beams > 1:
        with torch.no_grad():
            stepper = WordStepper(model, context, special.mask_token_id)
        return beam_search(stepper, len(context), options, special, context.device)
    stepper = WordStepper(model, context, special.mask_token_id)
    return decode_stepwise(stepper, len(context), options, special, context.device, generator)


def _check(model: VinVLForCaptioning, options: DecodingOptions) -> None:
    positions, words = model.config.max_position_embeddings, model.config.vocab_size
    if options.max_length > positions:
        raise UserError(f"max_length is {options.max_length}, but the model knows {positions} positions; lower it.")
    if CANDIDATES_PER_BEAM * options.num_beams > words:
        raise UserError(
            f"num_beams is {options.num_beams}, but the vocabulary has only {words} words; use at most {words // 2}."
        )


def _check_constraints(
    context: CaptionContext,
    constraints: Sequence[Sequence[Constraint]],
    options: DecodingOptions,
    special: SpecialTokens,
    vocabulary: int,
) -> None:
    if len(constraints) != len(context):
        raise UserError(f"There are constraints for {len(constraints)} images but {len(context)} images; match them.")
    if options.sample or options.num_return_sequences > 1:
        raise UserError(
            "Constrained beam search gives one caption per image; set sample off and num_return_sequences to 1."
        )
    for image, given in enumerate(constraints):
        refuse_unmeetable(given, options.min_constraints, options.max_length, f"image {image} of the batch")
        for constraint in given:
            tokens = {token for step in constraint.steps for token in step}
            if not all(0 <= token < vocabulary for token in tokens):
                raise UserError(
                    f"The constraint {constraint.name!r} has a token outside the vocabulary of {vocabulary}."
                )
            if tokens & {special.cls_token_id, special.sep_token_id, special.pad_token_id, special.mask_token_id}:
                raise UserError(f"The constraint {constraint.name!r} holds a special token; give plain words.")
