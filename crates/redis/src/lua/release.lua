-- Gives back whatever the owner has, the lock or its place, and grants a free lock to the next in line.
-- KEYS lock, fence, line, places
-- ARGV 1 owner 2 process 3 last token used, or '0': not known 4 for how long the lock is to stay taken, in ms 5 '1': NUMSUB is exact
--      6 '1': the fence counter may have expired meanwhile
-- -> 1 it had something, 0 it had nothing; 2 more: there are only dead ones in the line so far, to be said again
local call, L, F, Q = redis.call, KEYS[1], KEYS[2], KEYS[3]
local owner, process, used = ARGV[1], ARGV[2], ARGV[3]
local v = call('GET', L)
local mine = v and string.sub(v, 1, 37) == 'dl1:' .. owner .. ':'
if mine and ARGV[4] == '0' and call('EXISTS', Q) == 0 then
  -- The common case, before any function is defined.
  call('DEL', L)
  local holder, a, z = string.sub(v, 38, 69), string.match(v, '^(%d+):(%d+):', 71)
  -- A token of an earlier grant says nothing of this one: an acquisition that came late was granted anew.
  if used + 0 < a + 0 then used = z end
  -- The rest of a block goes back, or the counter outruns the clock.
  if used ~= z or ARGV[6] == '1' then call('SET', F, used, 'PX', 3600000) end
  if holder ~= process then redis.pcall('PUBLISH', '__distlock:c:' .. holder, 'l:' .. owner) end
  return 1
end
local time = call('TIME')
local us = time[1] * 1000000 + time[2]

--@common

local H, exact = KEYS[4], ARGV[5]
if not mine then
  local gone = call('ZREM', Q, owner)
  if gone == 1 then
    call('HDEL', H, owner, owner .. 'i')
    if call('EXISTS', Q) == 0 then call('DEL', H) end
  end
  if not v and promote(L, F, Q, H, nil, '', exact) == 'more' then gone = gone + 2 end
  return gone
end
local holder, a, z = parse(v)
if used + 0 < a + 0 then used = z end
local rest = tonumber(ARGV[4])
if rest > 0 then
  -- A mark in the owner's place, which no late renewal fits. PEXPIRE is not refused by a full memory, and then SET is not either.
  local head = call('ZRANGE', Q, 0, 0)[1]
  call('PEXPIRE', L, rest)
  call('SET', L, 'dl1:' .. string.rep('0', 32) .. ':' .. holder .. ':0:' .. used .. ':' .. fmt(rest) .. ':', 'PX', rest)
  call('SET', F, used, 'PX', rest + IDLE)
  local waiter = head and string.match(call('HGET', H, head .. 'i') or '', '^%x+')
  if waiter then tell(waiter, 'h:' .. head) end
  if holder ~= process then tell(holder, 'l:' .. owner) end
  return 1
end
local state = promote(L, F, Q, H, tonumber(used), '', exact)
if state ~= 'other' then
  call('DEL', L)
  if used ~= z or ARGV[6] == '1' then call('SET', F, used, 'PX', IDLE) end
end
if holder ~= process then tell(holder, 'l:' .. owner) end
return state == 'more' and 3 or 1
