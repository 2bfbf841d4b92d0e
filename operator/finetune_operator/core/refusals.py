"""Who refuses an object, and what would let it in: read off the words of the apiserver, which is all there is of it.

The same words come from the apiserver itself and, where a Job or a ReplicaSet is refused its pods, in their Events.
"""

from __future__ import annotations

import re

_RULES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.DOTALL), words)
    for pattern, words in (
        (
            r"exceeded quota: (?P<quota>[^,\s]+), requested: (?P<requested>[^,\s]+)",
            "room in ResourceQuota {quota} for {requested}: other runs end, or whoever runs the namespace raises it",
        ),
        (
            r"failed quota: (?P<quota>[^:\s]+): must specify (?P<fields>[\w./,-]+)",
            "{fields} to be set, as ResourceQuota {quota} demands: in the resources of the spec, or by a LimitRange",
        ),
        (
            r"(?P<kind>(?:Validating|Mutating)AdmissionPolicy) '(?P<policy>[^']+)'"
            r"(?: with binding '(?P<binding>[^']+)')?",
            "{kind} {policy} to let it in: a spec that meets it, or an exception by whoever runs that policy",
        ),
        (
            r'failed calling webhook "(?P<webhook>[^"]+)"',
            "admission webhook {webhook} to answer: whoever runs it gets it to work again, or removes it",
        ),
        (
            r'admission webhook "(?P<webhook>[^"]+)" denied',
            "admission webhook {webhook} to let it in: a spec that meets it, or an exception by whoever runs it",
        ),
        (
            r'violates PodSecurity "(?P<level>[^"]+)"',
            "Pod Security {level} of the namespace to be met: what a podTemplate adds or others inject, or its label",
        ),
        (
            r"security context constraint",
            "a SecurityContextConstraint that allows its user and group: the operator's settings FINETUNE_RUN_AS_USER, "
            "FINETUNE_RUN_AS_GROUP and FINETUNE_FS_GROUP set to none leave the choice to OpenShift",
        ),
        (
            r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)"',
            "{user} to have the right to {verb} {resource}: whoever runs the operator grants it",
        ),
        (
            r"is attempting to grant RBAC permissions not currently held",
            "the operator to have the rights that it passes on to gateways: whoever runs the operator grants them",
        ),
        (r"because it is being terminated", "nothing more: its namespace is being deleted, and it goes with it"),
        (
            r"no PriorityClass with name (?P<name>\S+) was found",
            "PriorityClass {name} to exist: somebody makes it, or the podTemplate names another",
        ),
        (
            r'serviceaccount "(?P<name>[^"]+)" not found',
            "ServiceAccount {name} to exist: Kubernetes makes it with the namespace, or somebody does",
        ),
        (
            r"(?P<limit>(?:maximum|minimum) \S+ usage per \w+ is [^,\]]+)",
            "a LimitRange of the namespace to allow it ({limit}): the resources of the spec, or whoever set it",
        ),
        (r" is invalid: (?P<field>[\w.\[\]\"]+): ", "{field} to be put right in what its spec makes of it"),
    )
)


def release_of(message: str) -> str | None:
    """What an object waits for that was refused with these words: who refused it, and what would let it in. None: the
    words are nobody's that is known."""
    for pattern, words in _RULES:
        if found := pattern.search(message):
            return words.format_map(found.groupdict())
    return None
