-- Extends held locks to the ttl that stands in their values. Creates nothing, shortens nothing.
-- KEYS lock 1, line 1, lock 2, line 2 ...
-- ARGV owner 1, owner 2 ...
-- -> for each {first, ttl, waiting}, or 0: it is not the owner's; or -1: it is not a lock at all
local answers = {}
for i = 1, #ARGV do
  local L = KEYS[2 * i - 1]
  local v = redis.pcall('GETRANGE', L, 0, 127)
  if type(v) == 'table' then
    answers[i] = -1
  elseif string.sub(v, 1, 37) == 'dl1:' .. ARGV[i] .. ':' then
    local a, ttl = string.match(v, '^(%d+):%d+:(%d+):', 71)
    if redis.call('PTTL', L) < tonumber(ttl) then redis.call('PEXPIRE', L, ttl) end
    answers[i] = {tonumber(a), tonumber(ttl), redis.call('EXISTS', KEYS[2 * i])}
  else
    answers[i] = 0
  end
end
return answers
