-- Decisions and answers are people's: under the ServiceAccount that Argo CD has in the cluster the admission policy lockstep-gate
-- refuses all three (docs/gitops.md).
local status = obj.status or {}
local waiting = (status.gate or {}).state == "Waiting" and 1 or 0
for _, request in ipairs(status.approvalRequests or {}) do
  if request.gate.state == "Waiting" then waiting = waiting + 1 end
end
-- Of several requests of an agent a click would not say which one is meant: kubectl lockstep approve does.
local gate = status.phase == "WaitingForAcceptance" and waiting == 1
local asks = false
for _, option in ipairs((status.waitingFor or {}).options or {}) do
  if option == "retry" then asks = true end
end
return {
  approve = {disabled = not gate, iconClass = "fa fa-fw fa-check"},
  reject = {disabled = not gate, iconClass = "fa fa-fw fa-times", params = {{name = "comment"}}},
  retry = {disabled = not asks, iconClass = "fa fa-fw fa-redo", params = {{name = "comment"}}},
}
