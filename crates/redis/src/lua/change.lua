-- Writes another ttl, which may be shorter, and other metadata for what the owner has. Creates nothing.
-- KEYS lock, fence, line, places
-- ARGV 1 owner 2 ttl 3 metadata 4 not after this time, in us 5 '1': NUMSUB is exact 6 ttl of a place
-- -> {'held', now, first, last, ttl, waiting}  {'queued', now, left, ours, rank}  {'gone', now}  {'late', now}
local call, L, F, Q, H = redis.call, KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local owner, ttl = ARGV[1], ARGV[2]
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
if us > tonumber(ARGV[4]) then return {'late', us} end

--@common

local v = call('GET', L)
if v and is(v, owner) then
  local process, a, z = parse(v)
  -- In this order, for a full memory does not refuse PEXPIRE, and then SET is not refused either.
  call('PEXPIRE', L, ttl)
  call('SET', L, 'dl1:' .. owner .. ':' .. process .. ':' .. a .. ':' .. z .. ':' .. ttl .. ':' .. ARGV[3], 'PX', ttl)
  if call('PTTL', F) < ttl + IDLE then call('SET', F, z, 'PX', ttl + IDLE) end
  return {'held', us, tonumber(a), tonumber(z), tonumber(ttl), call('ZCARD', Q)}
end
local process, hears, size = string.match(call('HGET', H, owner .. 'i') or '', '^(%x+):(%d):%d+:(%d+):')
if process then
  call('PEXPIRE', H, PLACE_MAX)
  call('HSET', H, owner .. 'i', process .. ':' .. hears .. ':' .. ttl .. ':' .. size .. ':' .. ARGV[3])
end
local state, a, z, has, waiting = stand(L, F, Q, H, v, owner, ARGV[5], ARGV[6])
if state == 'held' then return {'held', us, a, z, has, waiting} end
if state == 'free' or not z then return {'gone', us} end
local left, ours = rest_of(L, a)
return {'queued', us, left, ours, call('ZRANK', Q, owner)}
