"""Attack a defence through its exact gradient, and see what a blind attack and BPDA would have said."""

import torch

import depura
from depura.evaluation.demo import digits_purifier

data = depura.load_digits("test").first(16)
defence = depura.Defence(digits_purifier(), depura.digits_classifier())
attack = depura.PGD(depura.Ball("linf", 0.2), n_steps=10, eot=4)

targets = {
    "blind (bare classifier)": defence.with_(purifier=None),
    "BPDA (identity backward)": defence.with_(gradient=depura.StraightThrough()),
    "exact (stored states)": defence,
}
fresh = depura.Noise(1, data.ids, stream=depura.Stream.REPORT)  # draws that no attack has seen

for name, target in targets.items():
    start = depura.Noise(0, data.ids, stream=depura.Stream.INIT)
    draws = depura.Noise(0, data.ids, stream=depura.Stream.EOT)
    found = attack(target, data.images, data.labels, init=start, eot=draws).images[0]
    with torch.no_grad():
        right = [(defence(found, fresh.draw(k)).argmax(1) == data.labels).float().mean() for k in range(16)]
    print(f"{name:26s} accuracy of one draw {100 * float(torch.stack(right).mean()):.1f} %")
