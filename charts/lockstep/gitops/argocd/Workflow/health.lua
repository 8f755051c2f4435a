-- A run. Suspended: people or documents are awaited, or spec.suspend is true. Degraded: it failed or was cancelled. A run that is
-- over stays what it is, whatever is written into its spec afterwards.
local status = obj.status or {}
local function condition(kind)
  for _, c in ipairs(status.conditions or {}) do
    if c.type == kind then return c end
  end
  return {}
end
local function words(c)
  if c.message == nil or c.message == "" then return c.reason end
  return c.reason .. ": " .. c.message
end
local succeeded = condition("Succeeded")
if succeeded.status == "True" then return {status = "Healthy", message = succeeded.message} end
if succeeded.status == "False" then return {status = "Degraded", message = words(succeeded)} end
if status.phase == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Lockstep has not looked at it yet"}
end
local waiting = condition("Waiting")
if waiting.status == "True" then
  return {status = "Suspended", message = waiting.message .. "; who waits for what: kubectl lockstep inbox -n " .. obj.metadata.namespace}
end
if status.phase == "Suspended" then return {status = "Suspended", message = "spec.suspend is true"} end
return {status = "Progressing", message = words(succeeded)}
