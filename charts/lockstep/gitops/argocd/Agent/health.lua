-- An Agent. What could not be checked against the API server is used all the same.
local status = obj.status or {}
if status.observedGeneration == obj.metadata.generation then
  for _, c in ipairs(status.conditions or {}) do
    if c.type == "Ready" then
      if c.status == "False" then return {status = "Degraded", message = c.message} end
      return {status = "Healthy", message = c.message}
    end
  end
end
return {status = "Progressing", message = "Lockstep has not looked at it yet"}
