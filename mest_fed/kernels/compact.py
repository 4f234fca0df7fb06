"""Temporary torch versions."""
import torch

def quantise(x):
    flat = x.reshape(x.shape[0]*x.shape[1], -1) if x.dim()>2 else x.reshape(x.shape[0],-1)
    low = flat.amin(1); step=(flat.amax(1)-low)/255
    inv = torch.where(step>0, 1/step, torch.zeros_like(step))
    codes = ((flat-low[:,None])*inv[:,None]).round_().to(torch.uint8)
    return codes.view(x.shape), torch.stack([low,step],1)

def dequantise(codes, levels):
    flat = codes.reshape(len(levels), -1).to(levels.dtype)
    return torch.addcmul(levels[:,:1], flat, levels[:,1:]).view(codes.shape)

def squeeze(x):
    m = x!=0
    starts = torch.cat([torch.zeros(1,dtype=torch.int64), m.flatten(1).sum(1).cumsum(0)])
    return m, x[m], starts

def expand(bits, values, starts, shape, first, last):
    y = torch.zeros((last-first,*shape[1:]))
    y.masked_scatter_(bits[first:last], values[int(starts[first]):int(starts[last])])
    return y
