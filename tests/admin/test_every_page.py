"""Every page of the dashboard: it is there, asks nobody else for anything, breaks no policy, and is readable for everybody."""

from __future__ import annotations

from tests.admin.conftest import Site, Visitor


def pages_of(site: Site) -> dict[str, str]:
    company = site.company
    key, _ = company.keys[0]
    endpoint = company.endpoints["gpt-4o"][0]
    return {
        "overview": "/admin/?range=24h",
        "overview of a month": "/admin/?range=30d",
        "search": "/admin/search?q=liskov",
        "keys": "/admin/keys",
        "no keys": "/admin/keys?q=nothing-is-called-so",
        "new key": "/admin/keys/new",
        "key": f"/admin/keys/{key}",
        "edit key": f"/admin/keys/{key}/edit",
        "delete key": f"/admin/keys/{key}/delete",
        "users": "/admin/users",
        "new user": "/admin/users/new",
        "user": "/admin/user?oid=grace.hopper",
        "edit user": "/admin/user/edit?oid=grace.hopper",
        "delete user": "/admin/user/delete?oid=grace.hopper",
        "apps": "/admin/apps",
        "new app": "/admin/apps/new",
        "app": "/admin/apps/crm",
        "edit app": "/admin/apps/crm/edit",
        "delete app": "/admin/apps/crm/delete",
        "models": "/admin/models",
        "new model": "/admin/models/new",
        "model": "/admin/model?name=gpt-4o",
        "edit model": "/admin/model/edit?name=gpt-4o",
        "delete model": "/admin/model/delete?name=gpt-4o",
        "new endpoint": "/admin/endpoints/new?model=gpt-4o",
        "endpoint": f"/admin/endpoints/{endpoint}",
        "edit endpoint": f"/admin/endpoints/{endpoint}/edit",
        "delete endpoint": f"/admin/endpoints/{endpoint}/delete",
        "usage": "/admin/usage",
        "usage filtered": "/admin/usage?outcome=timeout&period=30d",
        "call": f"/admin/usage/{company.calls[0]}",
        "alerts": "/admin/alerts",
        "audit": "/admin/audit",
        "playground": "/admin/playground",
        "settings": "/admin/settings",
        "administrators": "/admin/admins",
        "new administrator": "/admin/admins/new",
    }


def test_every_page_is_there_and_nothing_comes_from_elsewhere(site: Site, visit: Visitor) -> None:
    for name, path in pages_of(site).items():
        answer = visit.page.goto(f"{site.origin}{path}")
        assert answer is not None
        assert answer.status == 200, (name, path)
        visit.page.wait_for_function("document.documentElement.dataset.ready === 'yes'")
    assert visit.elsewhere == []
    assert visit.complaints == []
