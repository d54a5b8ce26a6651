"""What is drawn of a grid of configurations."""

from pathlib import Path

from wsiseg.pages.configurations import Configured, picture


def configured(**sites: float) -> Configured:
    test = {site: {"auc": value} for site, value in sites.items()}
    figures = {"val": {"all": {"auc": 0.9}, "colon": {"auc": 0.9}}, "test": {"all": {"auc": 0.1}, **test}}
    return Configured(0.2, 0.4, Path("run"), 0.5, figures)


def test_organs_that_were_not_trained_on_are_not_drawn_with_those_that_were() -> None:
    mixed = configured(colon=0.75, breast=0.25)
    assert mixed.in_distribution("test") == ("colon",)
    assert mixed.measure("auc", "test", mixed.in_distribution("test")) == 0.75
    svg = picture([mixed], "test", mixed.in_distribution("test")).svg()
    assert "in-distribution test" in svg
    assert "0.750" in svg


def test_a_split_of_known_organs_alone_is_drawn_as_a_whole() -> None:
    assert configured(colon=0.75).in_distribution("test") == ("all",)
    assert ">0.100<" in picture([configured(colon=0.75)], "test").svg()
