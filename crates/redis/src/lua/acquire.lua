-- Takes the lock if it is free and nobody waits for it, else a place in the line. Asked again, it says the same again.
-- For one or for many, one after another; one of many that fails takes no other with it.
-- KEYS for each: lock, fence, line, places
-- ARGV for each: 1 the beginning of the value: 'dl1:' owner ':' process ':' 2 ttl 3 ttl of the fence 4 tokens in a row 5 not after this time, in us
--      6 metadata 7 the rest: 't' try or 'j' join, '1' if NUMSUB is exact, '1' if our channel is subscribed to, and the ttl of a place
-- -> of many a list with an answer for each, or nil for one that failed; the answer is
--    'now:first:last': held, and nobody waits
--    {'held', now, first, last, ttl, waiting}  {'busy', now, left, ours}  {'queued', now, left, ours, rank}  {'late', now}
local call = redis.call
local time = call('TIME')
local us = time[1] * 1000000 + time[2]
-- Numbers are written as seldom as can be: it costs more than a GET.
local text = string.format('%.0f', us)

local function slow(L, F, Q, H, head, ttl, tokens, metadata, rest)
--@common
  local owner, process = string.sub(head, 5, 36), string.sub(head, 38, 69)
  local mode, exact, hears, place_ttl = string.match(rest, '^(.)(.)(.)(.*)$')
  local v = call('GET', L)
  local state, a, z, has, waiting = stand(L, F, Q, H, v, owner, exact, place_ttl)
  if state == 'held' then
    if v then
      -- Asked again, perhaps by another process that resumes it: with its words, and told there what is to be told from now on.
      if tonumber(has) < tonumber(ttl) then has = ttl end
      local value = head .. a .. ':' .. z .. ':' .. has .. ':' .. metadata
      if value ~= v then
        call('PEXPIRE', L, has)
        call('SET', L, value, 'PX', has)
      end
    end
    return {'held', us, a, z, has, waiting}
  end
  if state == 'free' then
    a, z = block(tonumber(call('GET', F) or '0'), tokens)
    put(L, F, head, a, z, ttl, metadata)
    return {'held', us, a, z, ttl, 0}
  end
  local place
  v, place = a, z
  local left, ours = rest_of(L, v)
  if mode == 't' then return {'busy', us, left, ours} end
  if place then return {'queued', us, left, ours, call('ZRANK', Q, owner)} end
  call('ZADD', Q, call('HINCRBY', H, '#', 1), owner)
  call('HSET', H, owner, ms + place_ttl, owner .. 'i', process .. ':' .. hears .. ':' .. ttl .. ':' .. tokens .. ':' .. metadata)
  call('PEXPIRE', Q, PLACE_MAX)
  call('PEXPIRE', H, PLACE_MAX)
  local waiting = call('ZCARD', Q)
  if v and ours == 1 and waiting == 1 then tell(parse(v), 'c:' .. string.sub(v, 5, 36)) end
  return {'queued', us, left, ours, waiting - 1}
end

local function acquire(L, F, Q, H, head, ttl, fence_ttl, tokens, not_after, metadata, rest)
  if us > not_after + 0 then return {'late', us} end
  if call('EXISTS', L, Q) ~= 0 then return slow(L, F, Q, H, head, ttl, tokens, metadata, rest) end
  -- The common case, before the shared functions are defined, which costs as much as two calls.
  local a, z, last = text, text, tonumber(call('GET', F) or '0')
  if last >= us or tokens ~= '1' then
    local first = us
    if last >= us then first = last + 1 end
    if first > 2 ^ 53 - tokens then error('the fencing counter is where numbers are not exact any more') end
    a, z = string.format('%.0f', first), string.format('%.0f', first + tokens - 1)
  end
  call('SET', F, z, 'PX', fence_ttl)
  call('SET', L, head .. a .. ':' .. z .. ':' .. ttl .. ':' .. metadata, 'PX', ttl)
  return text .. ':' .. a .. ':' .. z
end

local K, A = KEYS, ARGV
if #K == 4 then return acquire(K[1], K[2], K[3], K[4], A[1], A[2], A[3], A[4], A[5], A[6], A[7]) end
local answers, a = {}, 0
for k = 4, #K, 4 do
  local done, answer = pcall(
    acquire, K[k - 3], K[k - 2], K[k - 1], K[k], A[a + 1], A[a + 2], A[a + 3], A[a + 4], A[a + 5], A[a + 6], A[a + 7])
  answers[k / 4] = done and answer
  a = a + 7
end
return answers
