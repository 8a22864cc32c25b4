"""What a class needs to know of a secret, told with every missing name at once.

Why it exists: parameters of a secret come from a policy file that people write. Promises one error
that names the secret, the missing parameters and the class that wants them.
"""

from __future__ import annotations

from domain.errors import InvalidSpec
from domain.rotation.contract import SecretRef


def parameters(secret: SecretRef, *names: str) -> list[str]:
    """Return the values of these parameters, in order.

    Raises:
        InvalidSpec: naming all that are missing.
    """
    missing = [name for name in names if not secret.parameters.get(name)]
    if missing:
        raise InvalidSpec(
            f"the secret {secret.path}",
            [f"{name}: the class {secret.kind} needs it. Add it to parameters" for name in missing],
        )
    return [secret.parameters[name] for name in names]
