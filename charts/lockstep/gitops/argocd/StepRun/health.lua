-- One step of a run. Suspended: a person is awaited, and the message is the command that decides or answers.
local status = obj.status or {}
local phase = status.phase
local failure = status.error or {}
if phase == "Completed" or phase == "Skipped" then return {status = "Healthy", message = ""} end
if phase == "Failed" then return {status = "Degraded", message = (failure.class or phase) .. ": " .. (failure.message or "")} end
if phase == "Cancelled" then return {status = "Degraded", message = phase} end
if phase == "WaitingForAcceptance" then
  local what, gate = "a decision is awaited", status.gate or {}
  for _, request in ipairs(status.approvalRequests or {}) do
    if request.gate.state == "Waiting" then what, gate = "the agent asks for an approval: " .. request.action, request.gate end
  end
  return {status = "Suspended", message = what .. ": " .. ((gate.commands or {})[1] or "kubectl lockstep inbox")}
end
if phase == "WaitingForInput" then
  local wait = status.waitingFor or {}
  return {status = "Suspended", message = (wait.question or "an answer is awaited") .. ": " .. ((wait.commands or {})[1] or "kubectl lockstep inbox")}
end
if phase == "Suspended" then return {status = "Suspended", message = "spec.suspend of the run is true"} end
for _, c in ipairs(status.conditions or {}) do
  if c.type == "Started" and c.status == "False" then return {status = "Progressing", message = c.reason .. ": " .. c.message} end
end
return {status = "Progressing", message = phase or "Lockstep has not looked at it yet"}
