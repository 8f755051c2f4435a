local schedule = (obj.spec or {}).schedule
return {
  suspend = {disabled = schedule == nil or schedule.suspend == true, iconClass = "fa fa-fw fa-pause"},
  resume = {disabled = schedule == nil or schedule.suspend ~= true, iconClass = "fa fa-fw fa-play"},
}
