-- What an agent remembers: it has no state.
return {status = "Healthy", message = ""}
