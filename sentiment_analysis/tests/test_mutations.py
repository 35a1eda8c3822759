"""Wrong sciences, each put into the real code and each caught by a check that the tests use."""

from __future__ import annotations

import pytest

from sentiment_analysis import data, evaluate, model, optimizer, prepare, train
from sentiment_analysis.tests import checks, paddle_checks, preparation_checks, training_checks
from tests.mutations import Mutation, assert_caught, assert_right_source_passes

pytestmark = pytest.mark.usefixtures("torch_state")

MODULES = (data, evaluate, model, optimizer, prepare, train)


MUTATIONS = {
    # --- network ---
    "the odd word on the right": Mutation(
        model,
        "first = self.left - width // 2",
        "first = self.left - (width - 1) // 2",
        checks.check_alignment,
    ),
    "filters back to front": Mutation(
        model,
        "places * width + offsets",
        "places * width + offsets.flip(0)",
        checks.check_convolution,
    ),
    "ReLU for ELU": Mutation(
        model, "nn.functional.elu(", "nn.functional.relu(", checks.check_convolution
    ),
    "bias after ELU": Mutation(
        model,
        "nn.functional.elu(sums + bias)",
        "nn.functional.elu(sums) + bias",
        paddle_checks.check_paddle_forward,
    ),
    "the smallest for the largest": Mutation(
        model,
        "num_filters).max(dim=1)",
        "num_filters).min(dim=1)",
        checks.check_convolution,
    ),
    "a word stands outside of reviews": Mutation(
        model,
        "nn.functional.pad(embedded, (0, 0, 0, 1))",
        "torch.cat([embedded, embedded[:1]])",
        checks.check_convolution,
    ),
    "gradient of one place of a window": Mutation(
        model,
        "gradient = gradients[0].unsqueeze(1).expand_as(winners)",
        "gradient = nn.functional.pad(gradients[0].unsqueeze(1), (0, 0, 0, winners.shape[1] - 1))",
        checks.check_convolution,
    ),
    "the last of equal cells has the gradient": Mutation(
        model, "scatter_add_(0, cells", "scatter_(0, cells", checks.check_convolution
    ),
    "Xavier with a fan-in of all filters": Mutation(
        model,
        "parts = [draw(num_filters, NUM_CLASSES) for _ in self.filters]",
        "parts = draw(num_filters * len(self.filters), NUM_CLASSES).split(num_filters)",
        checks.check_initial_values,
    ),
    "He's values": Mutation(
        model,
        "math.sqrt(6 / (rows + columns))",
        "math.sqrt(6 / rows)",
        checks.check_initial_values,
    ),
    "normal values": Mutation(
        model,
        "torch.rand(rows, columns, generator=generator).mul_(2 * limit).sub_(limit)",
        "torch.randn(rows, columns, generator=generator).mul_(limit / 3**0.5)",
        checks.check_initial_values,
    ),
    "biases of one": Mutation(
        model, "            bias.zero_()", "            bias.fill_(1)", checks.check_initial_values
    ),
    "shared stream in our layout": Mutation(
        model,
        "weight.copy_(matrix.view(width, size, num_filters).transpose(1, 2))",
        "weight.copy_(matrix.view(width, num_filters, size))",
        checks.check_shared_stream,
    ),
    "dropout in the evaluation": Mutation(
        model, "hidden, self.dropout, self.training)", "hidden, self.dropout)", checks.check_dropout
    ),
    # --- optimiser ---
    "dense Adam": Mutation(
        optimizer,
        "        assert gradient is not None\n",
        "        assert gradient is not None\n        words = torch.arange(len(gradient))\n",
        checks.check_lazy_adam,
    ),
    "rows without a gradient rest": Mutation(
        optimizer,
        "        gradient = self.embedding.grad\n        assert gradient is not None\n",
        "        gradient = self.embedding.grad\n        assert gradient is not None\n"
        "        words = words[(gradient[words] != 0).any(dim=1)]\n",
        paddle_checks.check_paddle_training_exactly,
    ),
    "epsilon inside the correction": Mutation(
        optimizer,
        "= self.epsilon / correction",
        "= self.epsilon",
        checks.check_lazy_adam,
    ),
    "correction a step late": Mutation(
        optimizer, "self.beta2**number", "self.beta2 ** (number + 1)", checks.check_lazy_adam
    ),
    "moments' decays changed over": Mutation(
        optimizer,
        "(config.adam_beta1, config.adam_beta2)",
        "(config.adam_beta2, config.adam_beta1)",
        paddle_checks.check_paddle_training,
    ),
    "weight decay": Mutation(
        optimizer,
        "fused=True)",
        "fused=True, weight_decay=1e-3)",
        paddle_checks.check_paddle_training,
    ),
    # --- data ---
    "padding in the last windows": Mutation(
        data,
        "seen = position.minimum(length - 1) + reach",
        "seen = position + 0 * length + reach",
        checks.check_convolution,
    ),
    "reviews begin with their second word": Mutation(
        data,
        "= on(device, places)",
        "= on(device, numpy.roll(places, -1))",
        checks.check_batches,
    ),
    "labels swapped": Mutation(
        data,
        "labels=on(device, reviews.labels[chosen])",
        "labels=on(device, 1 - reviews.labels[chosen])",
        checks.check_batches,
    ),
    "labels in another order than the texts": Mutation(
        data,
        "labels=on(device, reviews.labels[chosen])",
        "labels=on(device, reviews.labels[numpy.sort(chosen)])",
        checks.check_batches,
    ),
    "the same order in every epoch": Mutation(
        data, '"order", epoch)', '"order", 0)', checks.check_epoch_order
    ),
    "short batches first": Mutation(
        data,
        "stream.permutation(batches).ravel()",
        "batches[numpy.argsort(lengths[batches].mean(axis=1))].ravel()",
        checks.check_epoch_order,
    ),
    "the last batch dropped": Mutation(
        data,
        "range(first_step * config.batch_size, len(order), config.batch_size)",
        "range(first_step * config.batch_size, len(order) - config.batch_size + 1,"
        " config.batch_size)",
        checks.check_shares,
    ),
    "each process its own words": Mutation(
        data,
        "mine.reviews, on(device, words))",
        "mine.reviews, mine.words)",
        checks.check_shares,
    ),
    # --- metric ---
    "metric over all reviews": Mutation(
        evaluate, "is_right.split(batch_size)", "is_right.split(len(is_right))", checks.check_metric
    ),
    "last batch as if it were full": Mutation(
        evaluate,
        "batch.double().mean() for batch",
        "batch.double().sum() / batch_size for batch",
        checks.check_metric,
    ),
    "answers in the order of the lengths": Mutation(
        evaluate,
        "is_right[on(device, chosen)] =",
        "is_right[start : start + len(chosen)] =",
        checks.check_evaluation,
    ),
    "every process has the first one's part": Mutation(
        evaluate,
        "order[torch_support.rank() ::",
        "order[0 ::",
        checks.check_each_review_once,
    ),
    # --- preparation ---
    "cutoff is enough": Mutation(
        prepare,
        "counts[number] > config.word_cutoff",
        "counts[number] >= config.word_cutoff",
        preparation_checks.check_vocabulary,
    ),
    "vocabulary of the train half": Mutation(
        prepare,
        'HALVES if config.vocabulary_from == "train_and_test" else ("train",)',
        '("train",)',
        preparation_checks.check_vocabulary,
    ),
    "equals by first appearance": Mutation(
        prepare,
        "(-counts[number], words[number])",
        "-counts[number]",
        preparation_checks.check_vocabulary,
    ),
    "unknown word first": Mutation(
        prepare,
        "return [*(words[number] for number in kept), UNKNOWN_WORD], halves",
        "return [UNKNOWN_WORD, *(words[number] for number in kept)], halves",
        preparation_checks.check_vocabulary,
    ),
    "unknown words dropped": Mutation(
        prepare,
        "by_label = [(label, ids) for label in (POSITIVE, NEGATIVE) for ids in found[half, label]]",
        "by_label = [(label, ids[new_ids[ids] < len(kept)])"
        " for label in (POSITIVE, NEGATIVE) for ids in found[half, label]]",
        preparation_checks.check_vocabulary,
    ),
    "negatives first": Mutation(
        prepare,
        "for label in (POSITIVE, NEGATIVE) for ids",
        "for label in (NEGATIVE, POSITIVE) for ids",
        preparation_checks.check_vocabulary,
    ),
    "reviews cut": Mutation(
        prepare,
        "numpy.fromiter(map(numbers.__getitem__, words), numpy.int32, len(words))",
        "numpy.fromiter(map(numbers.__getitem__, words[:2]), numpy.int32, len(words[:2]))",
        preparation_checks.check_vocabulary,
    ),
    "positive is 1": Mutation(
        prepare,
        'POSITIVE if found[2] == "pos" else NEGATIVE',
        'NEGATIVE if found[2] == "pos" else POSITIVE',
        preparation_checks.check_archive,
    ),
    "unlabelled reviews are negative": Mutation(
        prepare,
        r"(train|test)/(pos|neg)/",
        r"(train|test)/(pos|neg|unsup)/",
        preparation_checks.check_archive,
    ),
    "a space for punctuation": Mutation(
        prepare,
        ".translate(None, PUNCTUATION)",
        '.translate(bytes.maketrans(PUNCTUATION, b" " * 32))',
        preparation_checks.check_words,
    ),
    "capitals stay": Mutation(
        prepare, ".lower().split()", ".split()", preparation_checks.check_words
    ),
    "text as unicode": Mutation(
        prepare,
        'text.rstrip(b"\\r\\n").translate(None, PUNCTUATION).lower().split()',
        '[w.encode("latin-1", "replace") for w in'
        ' text.translate(None, PUNCTUATION).decode("latin-1").lower().split()]',
        preparation_checks.check_words,
    ),
    "test rows among the train rows": Mutation(
        prepare,
        '                yield "train" if number % TEST_PERIOD else "test", label, text\n',
        '                yield "train", label, text\n'
        "                if number % TEST_PERIOD == 0:\n"
        '                    yield "test", label, text\n',
        preparation_checks.check_snippets,
    ),
    "unclear ratings stay": Mutation(
        prepare, "MIN_RATING = 1.0", "MIN_RATING = 0.5", preparation_checks.check_snippets
    ),
    "ratings of one left out": Mutation(
        prepare,
        "abs(rating) >= MIN_RATING",
        "abs(rating) > MIN_RATING",
        preparation_checks.check_snippets,
    ),
    "every fifth line, clear or not": Mutation(
        prepare,
        "                number += 1\n",
        "            number += 1\n",
        preparation_checks.check_snippets,
    ),
    # --- the loop ---
    "mean over a full batch": Mutation(
        train,
        "num_processes() / size)",
        "num_processes() / config.batch_size)",
        training_checks.check_trajectory,
    ),
    "mean over each process's share": Mutation(
        train,
        "* (torch_support.num_processes() / size)",
        "/ size",
        training_checks.check_gradient_is_mean_over_processes,
    ),
    "one word of each batch left out": Mutation(
        train, "batch.step_words,", "batch.words[1:],", training_checks.check_trajectory
    ),
    "gradients add up": Mutation(
        train,
        "                optimizer.zero_grad()\n",
        "                if step % 2 == 0:\n                    optimizer.zero_grad()\n",
        training_checks.check_trajectory,
    ),
    "steps counted from the epoch": Mutation(
        train, "run.step + len(losses) + 1)", "step + 1)", training_checks.check_trajectory
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_wrong_science_is_caught(name, monkeypatch, tmp_path):
    assert_caught(MUTATIONS[name], monkeypatch, tmp_path, MODULES)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_a_loaded_copy_of_the_right_source_passes(module, monkeypatch, tmp_path):
    mutations = list(MUTATIONS.values())
    assert_right_source_passes(module, mutations, monkeypatch, tmp_path, MODULES)
