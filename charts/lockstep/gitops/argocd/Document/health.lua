-- A document. One that a gate rejected did its part: the next round makes another.
local phase = (obj.status or {}).phase
if phase == "Published" then return {status = "Healthy", message = ""} end
if phase == "Superseded" then return {status = "Healthy", message = "a newer revision is found in its place"} end
if phase == "Rejected" then return {status = "Healthy", message = "its gate rejected it"} end
return {status = "Progressing", message = "it waits for the end, or the gate, of the step that made it"}
