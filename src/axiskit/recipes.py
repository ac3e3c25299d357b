"""The version of each step's numbers.

Snakemake does not see changes of library code. Each rule therefore carries its step's recipe number
in its params: bump the number when the same inputs give other numbers (and say so in CHANGELOG.md
under "Changes results"), and just that step and what follows it run again.
"""

RECIPE: dict[str, int] = {
    "fetch_model": 1,
    "generate_responses": 1,
    "judge_responses": 1,
    "extract_activations": 1,
    "compute_role_vectors": 1,
    "compute_axis": 1,
    "project_responses": 1,
    "analyse_persona_space": 1,
    "plot_roles_on_axis": 1,
    "plot_axis_pc1_cosine": 1,
    "plot_variance_explained": 1,
    "plot_persona_space": 1,
    "summarise_axis": 1,
}
