-- The requests of a file, one after the other and over again. A line is method, path, key and body, with tabs between.
local requests, at = {}, 0

function init(arguments)
    for line in io.lines(arguments[1]) do
        local method, path, key, body = line:match("^(.-)\t(.-)\t(.-)\t(.*)$")
        local headers = { ["Authorization"] = "Bearer " .. key, ["Content-Type"] = "application/json" }
        requests[#requests + 1] = wrk.format(method, path, headers, body ~= "" and body or nil)
    end
end

function request()
    at = at % #requests + 1
    return requests[at]
end

function done(summary, latency)
    local failed = summary.errors
    io.stderr:write(string.format(
        '{"answers": %d, "seconds": %f, "p99_ms": %f, "broken": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(99) / 1e3,
        failed.connect + failed.read + failed.write + failed.timeout + failed.status
    ))
end
