from zsad_jax.report.papers import compare_papers
from zsad_jax.report.published import MAIN_TABLES, all_numbers


def printed_cells(papers):
    """Returns the published cells of the tables by paper, table, dataset, metric, method and setting."""
    found = {}
    for paper in papers:
        for table in paper.tables:
            for line in table.lines:
                for column, cell in zip(table.columns, line.cells, strict=True):
                    known = dict(table.keys + line.keys + column.keys + cell.keys)
                    if known.get("source") != "published" or known["table"] == "gain":
                        continue
                    if cell.text:
                        keys = ("paper", "table", "dataset", "category", "level", "metric")
                        key = (*(known[k] for k in keys), known["method"], known["setting"])
                        assert key not in found
                        found[key] = cell
    return found


def key_of(number):
    level, _, metric = number.metric.partition("_")
    place = (number.paper, number.table, number.dataset, number.category, level, metric)
    return (*place, number.method, number.setting)


def test_main_tables_contain_all_numbers_as_printed():
    found = printed_cells(compare_papers([]))
    in_main = [n for n in all_numbers() if n.table in sum(MAIN_TABLES[n.paper], ())]
    assert len(in_main) == 300 + (336 + 216 + 6 * 78 + 6 * 96) + (70 + 100) + (234 + 252) + 4 * 234
    for number in in_main:
        cell = found.pop(key_of(number))
        assert (cell.text, cell.doubt) == (number.printed, bool(number.doubt))
    # The remaining cells are printed elsewhere: full-shot methods, and the means in FAPrompt's Table 3.
    full_shot = [key for key in found if key[6] in ("patchcore", "rd4ad")]
    means = [key for key in found if key[2].endswith("_mean")]
    assert (len(full_shot), len(means)) == (2 * 40, 16)
    assert len(found) == len(full_shot) + len(means)


def test_everything_contains_all_numbers():
    found = printed_cells(compare_papers([], everything=True))
    assert len(all_numbers()) == 4249
    assert not [number for number in all_numbers() if key_of(number) not in found]


def test_ablations_are_included_on_request_with_their_names():
    settings = {key[-1] for key in printed_cells(compare_papers([]))}
    assert settings == {""}
    (paper,) = compare_papers([], paper="vip2clip", table="4")
    heads = [column.full for column in paper.tables[0].columns]
    assert heads[0] == "ViP²-CLIP, ablation: none of UTPA, ViP-VCA, ViP-FGP"
    assert len(heads) == 7
