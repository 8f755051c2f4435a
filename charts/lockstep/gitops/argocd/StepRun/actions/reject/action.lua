-- What waits for a decision: the step's gate, or the request of its agent for one action.
local status = obj.status or {}
local gate = status.gate or {}
if gate.state ~= "Waiting" then
  for _, request in ipairs(status.approvalRequests or {}) do
    if request.gate.state == "Waiting" then gate = request.gate end
  end
end
-- The digest says what is meant: if it is another by then, the decision is refused.
local annotations = obj.metadata.annotations or {}
annotations["lockstep.dev/decision"] = "rejected"
annotations["lockstep.dev/review"] = gate.outputDigest
annotations["lockstep.dev/comment"] = actionParams["comment"]
obj.metadata.annotations = annotations
return obj
