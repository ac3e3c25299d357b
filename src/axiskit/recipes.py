"""The version of each step's numbers.

Snakemake does not see changes of library code. Each rule therefore carries its step's recipe number
in its params: bump the number when the same inputs give other numbers (and say so in CHANGELOG.md
under "Changes results"), and just that step and what follows it run again.
"""

RECIPE: dict[str, int] = {
    "fetch_model": 1,
    "generate_responses": 1,
    "judge_responses": 1,
    "ask_judge": 1,
    "extract_activations": 1,
    "compute_role_vectors": 1,
    "compute_axis": 1,
    "project_responses": 1,
    "calibrate_capping": 1,
    "hold_conversation": 1,
    "project_conversations": 1,
    "analyse_persona_space": 1,
    "compute_trait_vectors": 1,
    "rank_traits": 1,
    "plot_roles_on_axis": 1,
    "plot_axis_pc1_cosine": 1,
    "plot_variance_explained": 1,
    "plot_persona_space": 1,
    "plot_trajectories": 1,
    "plot_traits_on_axis": 1,
    "summarise_axis": 1,
    "draw_sample": 1,
    "judge_sample": 1,
    "make_label_sheet": 1,
    "compare_judges": 1,
    "compare_axes": 1,
    "summarise_audit": 1,
}
