-- A new run that goes on from this one, as `kubectl lockstep retry` makes it; the finished one stays as it is. Its name is computed:
-- a second click meets the run that the first one made. It bears no label of the application, so nothing prunes it.
local again = {
  apiVersion = obj.apiVersion,
  kind = obj.kind,
  metadata = {name = obj.metadata.name .. "-r2", namespace = obj.metadata.namespace},
  spec = obj.spec,
}
again.spec.suspend = nil
again.spec.cancel = nil
again.spec.retryOf = {name = obj.metadata.name, uid = obj.metadata.uid}
return {{operation = "create", resource = again}}
