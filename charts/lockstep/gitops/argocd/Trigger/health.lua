-- A Trigger: Degraded where it can start nothing, with every fault; a template that is not there may come. A schedule that Git or a
-- person suspends is well: nothing that follows has to wait for it.
local status = obj.status or {}
if status.observedGeneration == obj.metadata.generation then
  for _, c in ipairs(status.conditions or {}) do
    if c.type == "Ready" then
      if c.status == "False" then
        if c.reason == "Invalid" then return {status = "Degraded", message = c.message} end
        return {status = "Progressing", message = c.message}
      end
      local schedule = (obj.spec or {}).schedule or {}
      if schedule.suspend == true then return {status = "Healthy", message = "its schedule is suspended"} end
      return {status = "Healthy", message = c.message}
    end
  end
end
return {status = "Progressing", message = "Lockstep has not looked at it yet"}
