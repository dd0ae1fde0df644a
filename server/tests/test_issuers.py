async def test_smoke(client):
    r = await client.post("/api/v1/issuers", json={"name": "x", "type": "stepca", "config": {"a": "b", "provisioner_password": "s"}})
    assert r.status_code == 201, r.text
    print(r.json())
    r = await client.get("/api/v1/issuers?status=incomplete&type=StepCA")
    print(r.json())
    r = await client.get("/api/v1/connectors")
    print(r.json())
    assert 0
