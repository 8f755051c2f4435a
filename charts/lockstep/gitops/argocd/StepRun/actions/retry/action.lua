local annotations = obj.metadata.annotations or {}
annotations["lockstep.dev/action"] = "retry"
annotations["lockstep.dev/comment"] = actionParams["comment"]
obj.metadata.annotations = annotations
return obj
