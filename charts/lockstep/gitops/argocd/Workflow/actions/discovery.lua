local phase = (obj.status or {}).phase
local over = phase == "Completed" or phase == "Failed" or phase == "Cancelled"
local spec = obj.spec or {}
return {
  suspend = {disabled = over or spec.suspend == true or spec.cancel == true, iconClass = "fa fa-fw fa-pause"},
  resume = {disabled = over or spec.suspend ~= true, iconClass = "fa fa-fw fa-play"},
  cancel = {disabled = over or spec.cancel == true, iconClass = "fa fa-fw fa-stop"},
  retry = {disabled = phase ~= "Failed" and phase ~= "Cancelled", iconClass = "fa fa-fw fa-redo"},
}
