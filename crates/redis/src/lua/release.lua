-- Gives back whatever the owner has, the lock or its place, and grants a free lock to the next in line.
-- For one or for many, one after another; one of many that fails takes no other with it.
-- KEYS for each: lock, fence, line, places
-- ARGV for each: 1 the beginning of the value: 'dl1:' owner ':' process ':' 2 last token used; '0': not known; '': the only one there was
--      3 for how long the lock is to stay taken, in ms 4 '1': the fence counter may have expired meanwhile 5 '1': NUMSUB is exact
-- -> of many a list with an answer for each, or nil for one that failed; the answer is
--    1 it had something, 0 it had nothing; 2 more: there are only dead ones in the line so far, to be said again
local call = redis.call

local function slow(L, F, Q, H, owner, process, used, rest, long, exact, v, mine)
  local time = call('TIME')
  local us = time[1] * 1000000 + time[2]
--@common
  -- Has the head of the line look, where nobody else would tell it when.
  local function alert()
    local head = call('ZRANGE', Q, 0, 0)[1]
    local waiter = head and string.match(call('HGET', H, head .. 'i') or '', '^%x+')
    if waiter then tell(waiter, 'h:' .. head) end
  end

  if not mine then
    local head = call('ZRANGE', Q, 0, 0)[1]
    local gone = call('ZREM', Q, owner)
    if gone == 1 then
      call('HDEL', H, owner, owner .. 'i')
      if call('EXISTS', Q) == 0 then call('DEL', H) end
    end
    if not v and promote(L, F, Q, H, nil, '', exact) == 'more' then gone = gone + 2 end
    -- It was the one that looked often after a lock that is none of ours.
    if v and head == owner and not parse(v) then alert() end
    return gone
  end
  local holder, a, z = parse(v)
  if used == '' or used + 0 < a + 0 then used = z end
  rest = tonumber(rest)
  if rest > 0 then
    -- A mark in the owner's place, which no late renewal fits. PEXPIRE is not refused by a full memory, and then SET is not either.
    call('PEXPIRE', L, rest)
    call('SET', L, 'dl1:' .. string.rep('0', 32) .. ':' .. holder .. ':0:' .. used .. ':' .. fmt(rest) .. ':', 'PX', rest)
    call('SET', F, used, 'PX', rest + IDLE)
    alert()
    if holder ~= process then tell(holder, 'l:' .. owner) end
    return 1
  end
  local state = promote(L, F, Q, H, tonumber(used), '', exact)
  if state ~= 'other' then
    call('DEL', L)
    if used ~= z or long == '1' then call('SET', F, used, 'PX', IDLE) end
  end
  if holder ~= process then tell(holder, 'l:' .. owner) end
  return state == 'more' and 3 or 1
end

local function release(L, F, Q, H, head, used, rest, long, exact)
  local v = call('GET', L)
  -- The common case, before the shared functions are defined, and with as little done with text as can be.
  if v and used == '' and rest == '0' and long == '0' and string.sub(v, 1, 70) == head and call('EXISTS', Q) == 0 then
    call('DEL', L)
    return 1
  end
  local owner, process = string.sub(head, 5, 36), string.sub(head, 38, 69)
  local mine = v and string.sub(v, 1, 37) == string.sub(head, 1, 37)
  if not mine or rest ~= '0' or call('EXISTS', Q) ~= 0 then
    return slow(L, F, Q, H, owner, process, used, rest, long, exact, v, mine)
  end
  call('DEL', L)
  local holder, a, z = string.sub(v, 38, 69), string.match(v, '^(%d+):(%d+):', 71)
  -- A token of an earlier grant says nothing of this one: an acquisition that came late was granted anew.
  if used == '' or used + 0 < a + 0 then used = z end
  -- The rest of a block goes back, or the counter outruns the clock.
  if used ~= z or long == '1' then call('SET', F, used, 'PX', 3600000) end
  if holder ~= process then redis.pcall('PUBLISH', '__distlock:c:' .. holder, 'l:' .. owner) end
  return 1
end

local K, A = KEYS, ARGV
if #K == 4 then return release(K[1], K[2], K[3], K[4], A[1], A[2], A[3], A[4], A[5]) end
local answers, a = {}, 0
for k = 4, #K, 4 do
  local done, answer = pcall(
    release, K[k - 3], K[k - 2], K[k - 1], K[k], A[a + 1], A[a + 2], A[a + 3], A[a + 4], A[a + 5])
  answers[k / 4] = done and answer
  a = a + 5
end
return answers
