-- FineTuneJob and ModelEndpoint follow kstatus: one of Ready, Reconciling and Stalled is true, for the generation that
-- status.observedGeneration names. What waits for a person is Suspended; a queue is Progressing.
local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "the operator has not seen the newest spec yet"}
end
local holds = {}
for _, condition in ipairs(status.conditions or {}) do
  holds[condition.type] = condition.status == "True"
end
local waits_for_a_person = {Suspended = true, Paused = true, AwaitingApproval = true}
local health = "Progressing"
if holds.Stalled then
  health = "Degraded"
elseif holds.Ready then
  health = "Healthy"
elseif waits_for_a_person[status.phase] then
  health = "Suspended"
end
return {status = health, message = status.message or ""}
