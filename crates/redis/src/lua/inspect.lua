-- Who holds the lock, for how long, and how many wait.
-- KEYS lock, line
-- -> {value or nil, ttl left in ms, waiting}
return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]), redis.call('ZCARD', KEYS[2])}
