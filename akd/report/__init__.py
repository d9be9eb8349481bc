"""What a study found, for a reader: facts are gathered from its folder, figures and pages are made of facts.

``command`` is the verb; ``verify`` compares the records a study leaves.
"""
